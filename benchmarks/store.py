"""How fast are features read? Items per second of the feature store and of other formats for the same arrays.

    python benchmarks/store.py

Random features [L, T, D] of 32 layers, 25 frames and dimension 1280 (LTU-AS: 10 s of Whisper large-v3) in 16 bits are
written as a feature store, as one compressed .npz and one .npy per clip, as one raw file for `np.memmap`, and with
SpeechBrain's `CachedHDF5DynamicItem`. All are read in the same random order, full items and single layers, and each
read copies into new memory. The formats alternate every ten items, because other work on a machine changes its speed.
Results are medians over these runs with warm files; a ratio is the speed of the store relative to another format. Also
measured: bytes per clip in each dtype, the error of int8 relative to each channel's standard deviation, and the time to
open a store with many keys. The last line of standard output is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import DTYPES
from audiolm_lite.features.writer import FeatureWriter

LAYERS, FRAMES, DIM = 32, 25, 1280


def clip(number: int) -> torch.Tensor:
    """Features [L, T, D] whose channels differ in size by a factor of up to 1000, as in speech encoders."""
    generator = torch.Generator().manual_seed(number)
    sizes = 10 ** (3 * torch.rand(LAYERS, 1, DIM, generator=torch.Generator().manual_seed(0)) - 2)
    return sizes * torch.randn(LAYERS, FRAMES, DIM, generator=generator)


def make_readers(folder: Path, keys: list[str]) -> dict[str, tuple[Callable, Callable]]:
    """Write all formats; returns name -> functions that read a full item and one layer."""
    with FeatureWriter(folder / "store", {}) as writer:
        for number, key in enumerate(keys):
            writer.add(key, clip(number))
    store = FeatureStore(folder / "store")

    raw = np.memmap(folder / "raw", np.float16, "w+", shape=(len(keys), LAYERS, FRAMES, DIM))
    index = {key: number for number, key in enumerate(keys)}
    for key in keys:
        array = store[key].numpy()
        raw[index[key]] = array
        np.save(folder / f"{key}.npy", array)
        np.savez_compressed(folder / f"{key}.npz", array)
    raw.flush()
    raw = np.memmap(folder / "raw", np.float16, "r", shape=raw.shape)

    def npz(key: str) -> torch.Tensor:
        return torch.from_numpy(np.load(folder / f"{key}.npz")["arr_0"])

    def npy(key: str) -> torch.Tensor:
        return torch.from_numpy(np.load(folder / f"{key}.npy"))

    readers = {
        "store": (store.__getitem__, lambda key, layer: store.read(key, [layer])),
        "memmap": (
            lambda key: torch.from_numpy(np.array(raw[index[key]])),
            lambda key, layer: torch.from_numpy(np.array(raw[index[key], layer])),
        ),
        "npy": (npy, lambda key, layer: npy(key)[layer].clone()),
        "npz": (npz, lambda key, layer: npz(key)[layer].clone()),
    }
    try:
        from speechbrain.integrations.hdf5.cached_item import CachedHDF5DynamicItem
    except ImportError as error:
        print(f'speechbrain_hdf5 is not measured: {error}; run: pip install "audiolm_lite[data]"', file=sys.stderr)
        return readers

    cache = CachedHDF5DynamicItem(folder / "hdf5", takes=["id"], func=store.read, provides=["features"])
    for key in keys:
        cache(key)
    cache.change_file_mode("r")
    readers["speechbrain_hdf5"] = (
        lambda key: torch.from_numpy(cache(key)),
        lambda key, layer: torch.from_numpy(cache(key)[layer]).clone(),
    )
    return readers


def seconds_per_item(readers: dict, keys: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over runs of ten items, for full items and for one layer; readers alternate.

    Most of these short runs are not interrupted, even on a busy machine.
    """
    chance = np.random.default_rng(0)
    taken: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in readers} for kind in ("item", "layer")}
    for _ in range(rounds):
        order = [keys[i] for i in chance.permutation(len(keys))]
        layers = chance.integers(LAYERS, size=len(keys)).tolist()
        for first in range(0, len(keys), 10):
            part, part_layers = order[first : first + 10], layers[first : first + 10]
            for name in chance.permutation(list(readers)).tolist():
                read, read_layer = readers[name]
                for key in part:
                    read(key)  # the kernel may have dropped these pages
                started = time.perf_counter()
                for key in part:
                    read(key)
                middle = time.perf_counter()
                for key, layer in zip(part, part_layers):
                    read_layer(key, layer)
                taken["item"][name].append((middle - started) / len(part))
                taken["layer"][name].append((time.perf_counter() - middle) / len(part))
    return {kind: {name: median(values) for name, values in by_name.items()} for kind, by_name in taken.items()}


def sizes_and_error(folder: Path, clips: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes per clip for each dtype; error of int8 relative to the standard deviation of each channel."""
    sizes = {}
    for dtype in DTYPES:
        with FeatureWriter(folder / dtype, {}, dtype) as writer:
            for number in range(clips):
                writer.add(str(number), clip(number))
        sizes[dtype] = sum(file.stat().st_size for file in (folder / dtype).glob("features*")) / clips
    store = FeatureStore(folder / "int8")
    errors = torch.cat([(store[str(n)] - clip(n)) / clip(n).std(1, keepdim=True) for n in range(clips)])
    return sizes, {"root_mean_square": errors.square().mean().sqrt().item(), "largest": errors.abs().max().item()}


def opening(folder: Path, keys: int) -> dict[str, float]:
    """Seconds to open a store of `keys` tiny clips: the first time, which builds the table of keys, and later."""
    with FeatureWriter(folder / "many", {}, flush_seconds=1e9) as writer:
        for number in range(keys):
            writer.add(f"corpus/part {number % 97}/{number:08d}.flac", torch.zeros(1, 1, 1))
    (folder / "many" / "keys.safetensors").unlink(missing_ok=True)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        FeatureStore(folder / "many")
        seconds.append(time.perf_counter() - started)
    return {"keys": keys, "first": seconds[0], "later": median(seconds[1:])}


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keys", type=int, default=300_000)
    parser.add_argument("--folder", help="where to write, about 10 MB per clip; default: the temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = [f"clip{number:05d}" for number in range(options.clips)]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        taken = seconds_per_item(make_readers(folder, keys), keys, options.rounds)
        sizes, error = sizes_and_error(folder, 10)
        result = {
            "shape": [LAYERS, FRAMES, DIM],
            "items_per_second": {
                kind: {name: 1 / seconds for name, seconds in by_name.items()} for kind, by_name in taken.items()
            },
            **{
                f"ratio_{other}": {kind: taken[kind][other] / taken[kind]["store"] for kind in taken}
                for other in taken["item"]
                if other != "store"
            },
            "bytes_per_clip": sizes,
            "int8_error_in_standard_deviations": error,
            "opening_seconds": opening(folder, options.keys),
        }
    print(json.dumps({**result, **vars(options), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
