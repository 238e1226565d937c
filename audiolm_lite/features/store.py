"""The feature store: a folder of safetensors shards, key -> features [L, T, D], with the fingerprint of what made them.

    store.json                        format version, fingerprint, dtype, L, D
    features-<rank>-<n>.safetensors   one tensor a key
    index-<rank>.jsonl                one line a finished shard: {"shard": name, "bytes": size, "frames": {key: T, ...}}

A shard counts once its line is in the index, and the line is written after the shard has its final name. So whatever
interrupts a writer costs only what it had not yet flushed.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class FeatureStoreError(ValueError):
    """A feature store that cannot be used; the message says why and what to do."""


class FeatureWriter:
    """Add features to a store, a new one or one that an earlier run left unfinished.

    Parameters
    ----------
    folder : str or Path
        The store; several ranks may write to it at the same time.
    fingerprint : dict
        All that decides the features (JSON values), as `encoder.identity()` gives it.
    dtype : {"float16", "bfloat16", "float32"}
        How features are stored.
    shard_bytes : int
        A shard is closed when it holds this much.
    flush_seconds : float
        A shard is closed when its first clip is this old, so that an interruption costs no more work than that.
    rank : int
        Process that writes; each has its own shards and index.

    Raises
    ------
    FeatureStoreError
        The folder holds a store of another fingerprint, dtype or format.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: dict[str, Any],
        dtype: str = "float16",
        shard_bytes: int = 1 << 30,
        flush_seconds: float = 60,
        rank: int = 0,
    ):
        if dtype not in _DTYPES:
            raise FeatureStoreError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        self.folder, self.dtype, self.rank = Path(folder), _DTYPES[dtype], rank
        self.shard_bytes, self.flush_seconds = shard_bytes, flush_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through JSON, so that what was just given compares equal to what is read back (tuples become lists).
        self.header = {"format": FORMAT, "dtype": dtype, "fingerprint": json.loads(json.dumps(fingerprint))}
        if (self.folder / "store.json").exists():
            stored = _read_header(self.folder)
            _require_equal(self.folder, {key: stored[key] for key in self.header}, self.header)
            self.header = stored

        shards = _read_index(self.folder)
        sound = [shard for shard in shards if _is_sound(self.folder, shard)]
        self.stored = {key for shard in sound for key in shard["frames"]}
        # What an interrupted run of this rank left half done goes away: index lines without their shard, shards without
        # their line, files without their final name.
        self.index = self.folder / f"index-{rank:02d}.jsonl"
        mine = [shard for shard in sound if shard["shard"].startswith(f"features-{rank:02d}-")]
        unfinished = self.index.with_name(self.index.name + ".tmp")
        unfinished.write_text("".join(json.dumps(shard) + "\n" for shard in mine), encoding="utf-8")
        os.replace(unfinished, self.index)
        names = {shard["shard"] for shard in mine}
        for file in self.folder.glob(f"features-{rank:02d}-*"):
            if file.name not in names:
                file.unlink()
        self.number = 1 + max((int(name[:-12].rsplit("-", 1)[1]) for name in names), default=-1)
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes, self.pending_since = 0, 0.0

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # also after an error: the clips before it are sound

    def __contains__(self, key: str) -> bool:
        return key in self.stored or key in self.pending

    def add(self, key: str, features: Tensor) -> None:
        """Store features [L, T, D] under a new key.

        Raises
        ------
        FeatureStoreError
            The key is there already, the shape does not fit the store, or a value is not finite in the store's dtype.
        """
        if key in self:
            raise FeatureStoreError(f"{self.folder}: key {key!r} is stored already; skip keys that are in the writer")
        if features.ndim != 3 or 0 in features.shape:
            raise FeatureStoreError(f"{self.folder}: {key!r}: shape {tuple(features.shape)} is not [L, T, D]")
        layers, _, dim = features.shape
        if "feature_dim" not in self.header:
            self.header |= {"num_layers": layers, "feature_dim": dim}
            unfinished = self.folder / f"store.json.{self.rank:02d}.tmp"
            unfinished.write_text(json.dumps(self.header, indent=1), encoding="utf-8")
            os.replace(unfinished, self.folder / "store.json")
        if (layers, dim) != (self.header["num_layers"], self.header["feature_dim"]):
            raise FeatureStoreError(
                f"{self.folder}: {key!r}: {layers} layers of dimension {dim}; the store has "
                f"{self.header['num_layers']} of {self.header['feature_dim']}"
            )
        # A clone: a slice would keep (and safetensors refuse) the whole batch it is from.
        features = features.detach().to("cpu", self.dtype).clone(memory_format=torch.contiguous_format)
        if not features.isfinite().all():
            raise FeatureStoreError(
                f"{self.folder}: {key!r}: NaN or infinite in {self.header['dtype']}; store bfloat16 or float32"
            )
        if not self.pending:
            self.pending_since = time.monotonic()
        self.pending[key] = features
        self.pending_bytes += features.nbytes
        if self.pending_bytes >= self.shard_bytes or time.monotonic() - self.pending_since >= self.flush_seconds:
            self._flush()

    def close(self) -> None:
        """Write what is pending; the writer may be used further."""
        if self.pending:
            self._flush()

    def _flush(self) -> None:
        shard = self.folder / f"features-{self.rank:02d}-{self.number:05d}.safetensors"
        unfinished = shard.with_name(shard.name + ".tmp")
        save_file(self.pending, unfinished)
        os.replace(unfinished, shard)
        frames = {key: features.shape[1] for key, features in self.pending.items()}
        line = {"shard": shard.name, "bytes": shard.stat().st_size, "frames": frames}
        with self.index.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.stored |= frames.keys()
        self.pending, self.pending_bytes, self.number = {}, 0, self.number + 1


class FeatureStore:
    """Read a feature store; shards are memory-mapped and opened on first use, in every DataLoader worker anew.

    Parameters
    ----------
    folder : str or Path
        The store.
    fingerprint : dict, optional
        What the features must be made with, as `encoder.identity()` gives it; anything is taken if None.

    Attributes
    ----------
    fingerprint : dict
        What the features are made with.
    num_layers, feature_dim : int
        L and D.

    Raises
    ------
    FeatureStoreError
        No store there, another format or fingerprint, or shards that are missing or cut off.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any] | None = None):
        self.folder = Path(folder)
        header = _read_header(self.folder)
        self.fingerprint = header["fingerprint"]
        if fingerprint is not None:
            asked = json.loads(json.dumps(fingerprint))
            _require_equal(self.folder, {"fingerprint": self.fingerprint}, {"fingerprint": asked})
        self.num_layers, self.feature_dim = header["num_layers"], header["feature_dim"]

        shards = _read_index(self.folder)
        sound = [shard for shard in shards if _is_sound(self.folder, shard)]
        # key -> (shard, T)
        self._entries = {key: (shard["shard"], time) for shard in sound for key, time in shard["frames"].items()}
        for shard in shards:
            lost = shard["frames"].keys() - self._entries.keys()
            if lost:
                raise FeatureStoreError(
                    f"{self.folder / shard['shard']}: missing or cut off, {len(lost)} clips lost; run the extraction "
                    "again, which computes these anew"
                )
        self._shards: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files do not travel to another process

    def keys(self) -> list[str]:
        """All keys, in the order of the index."""
        return list(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def frames(self, key: str) -> int:
        """Frames T of a clip, from the index alone."""
        return self._entry(key)[1]

    def __getitem__(self, key: str) -> Tensor:
        """Features [L, T, D] of a clip, in the dtype they are stored in."""
        name, _ = self._entry(key)
        if name not in self._shards:
            self._shards[name] = safe_open(self.folder / name, "pt")
        return self._shards[name].get_tensor(key)

    def _entry(self, key: str) -> tuple[str, int]:
        if key not in self._entries:
            raise FeatureStoreError(
                f"{self.folder}: no features for {key!r}; run the extraction for its manifest, or see rejected.jsonl"
            )
        return self._entries[key]


def _read_header(folder: Path) -> dict[str, Any]:
    file = folder / "store.json"
    if not file.is_file():
        raise FeatureStoreError(f"{folder}: no feature store (no store.json); run the extraction or correct the path")
    header = json.loads(file.read_text(encoding="utf-8"))
    if header["format"] != FORMAT:
        raise FeatureStoreError(f"{file}: format {header['format']}, this version reads {FORMAT}; extract again")
    return header


def _read_index(folder: Path) -> list[dict[str, Any]]:
    """Lines of all ranks' indexes; a last line without its end was interrupted and does not count."""
    lines = []
    for file in sorted(folder.glob("index-*.jsonl")):
        lines += file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _is_sound(folder: Path, shard: dict[str, Any]) -> bool:
    file = folder / shard["shard"]
    return file.is_file() and file.stat().st_size == shard["bytes"]


def _require_equal(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise FeatureStoreError naming every entry (dotted for nested ones) in which the two differ."""
    stored, asked = _flat(stored), _flat(asked)
    differing = [name for name in sorted(stored | asked) if stored.get(name, "nothing") != asked.get(name, "nothing")]
    if differing:
        lines = [
            f"{name}: stored {stored.get(name, 'nothing')!r}, asked {asked.get(name, 'nothing')!r}"
            for name in differing
        ]
        raise FeatureStoreError(
            f"{folder}: made with other settings than asked for:\n  "
            + "\n  ".join(lines)
            + "\nUse the stored settings, or extract into another folder."
        )


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
