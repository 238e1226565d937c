"""How fast is feature extraction? Clips per second, compared with the loop that recipes commonly use.

    python benchmarks/extract.py

The reference encodes one clip at a time, padded to 30 s by the feature extractor, pools every layer and writes one
compressed .npz per clip. This project's extraction is timed with exact, window (10 s; longer clips are cropped) and
full padding. On a CPU it runs in one process per thread, which is faster than several threads in one encoder. On
machines with native bfloat16, the three paddings are also timed with it (`..._bfloat16`). Clips are synthetic (1 to
12 s, 5 s on average, 16 kHz, 16 bits) and weights random: four layers of 192 dimensions on the CPU (the encoder of
MiniASQA, with an input of 30 s) and, with a GPU, large-v3 on it. Reference and project alternate on the same clips,
because other work on a machine changes its speed; ratios are medians over rounds. `encoder_share` is the share of the
extraction's time that is spent in the encoder. The last line of standard output is one JSON object.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, set_start_method
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
import transformers

from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.features.extract import extract

POOL = 20
PADDINGS = {
    "exact": {"padding": "exact"},
    "window": {"padding": "window", "window_seconds": 10.0},
    "full": {"padding": "full"},
}
SMALL = {"d_model": 192, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 768, "num_mel_bins": 80}
LARGE_V3 = {
    "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
}  # fmt: skip


def write_clips(folder: Path, count: int, seconds: float = 5.0) -> list[dict]:
    """Write clips of noise and tones, 1 to 12 s long with the given mean; returns their manifest rows."""
    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        duration = float(np.clip(chance.gamma(4.0, seconds / 4.0), 1.0, 12.0))
        time_axis = np.arange(round(duration * 16000)) / 16000
        samples = 0.2 * np.sin(2 * np.pi * chance.uniform(100, 2000) * time_axis)
        soundfile.write(folder / f"{number}.wav", samples + 0.05 * chance.standard_normal(len(samples)), 16000)
        rows.append({"audio": f"{number}.wav", "start": 0.0, "duration": len(samples) / 16000})
    return rows


def save_model(folder: Path, sizes: dict) -> None:
    """Write a random Whisper with these sizes."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**sizes, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64)
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"]).save_pretrained(folder)


class Reference:
    """One clip at a time, padded to 30 s; every hidden state is pooled; one compressed file per clip."""

    def __init__(self, source: Path, device: str):
        self.encoder = transformers.WhisperModel.from_pretrained(source).encoder.to(device).eval()
        self.extractor = transformers.WhisperFeatureExtractor.from_pretrained(source)
        self.device = device

    @torch.no_grad()
    def __call__(self, rows: list[dict], root: Path, folder: Path) -> None:
        folder.mkdir()
        for row in rows:
            samples, rate = soundfile.read(root / row["audio"], dtype="float32")
            inputs = self.extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
            states = self.encoder(inputs.to(self.device), output_hidden_states=True).hidden_states
            layers = torch.stack(states[1:])[:, 0]  # [L, 1500, D]
            pooled = layers.unflatten(1, (-1, POOL)).mean(2)
            np.savez_compressed(folder / f"{Path(row['audio']).stem}.npz", pooled.cpu().numpy().astype(np.float16))


class Timed(torch.nn.Module):
    """An encoder that sums the wall time of its calls."""

    def __init__(self, encoder: WhisperEncoder):
        super().__init__()
        self.encoder, self.seconds = encoder, 0.0
        self.frame_seconds, self.max_seconds = encoder.frame_seconds, encoder.max_seconds
        self.num_frames, self.identity = encoder.num_frames, encoder.identity

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        result = self.encoder(waveforms, lengths)
        if waveforms.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return result


def settings_of(device: str) -> dict[str, dict]:
    """Arguments of the project's encoders by name."""
    wide = {name: {**padding, "dtype": "float32"} for name, padding in PADDINGS.items()}
    if device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return wide
    return wide | {f"{name}_bfloat16": {**padding, "dtype": "bfloat16"} for name, padding in PADDINGS.items()}


def start_process(source: Path, threads: int, settings: dict[str, dict]) -> None:
    """Load the project's encoders in a process of the extraction."""
    torch.set_num_threads(threads)
    set_start_method("fork", force=True)  # for decoding processes: they inherit "spawn", which imports torch again
    global encoders
    encoders = {name: Timed(WhisperEncoder(str(source), pool=POOL, **setting)) for name, setting in settings.items()}


def extract_rank(name: str, rows: list[dict], folder: Path, **options) -> tuple[float, float]:
    """Extract the clips of one rank; returns the seconds in the encoder and in total."""
    encoder, started = encoders[name], time.perf_counter()
    encoder.seconds = 0.0
    logging.disable(logging.WARNING)  # about clips longer than the window
    extract(rows, encoder, folder, long_audio="crop", **options)
    return encoder.seconds, time.perf_counter() - started


def benchmark(geometry: str, sizes: dict, device: str, processes: int, options: argparse.Namespace) -> dict:
    """Speeds of reference and project with one geometry."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = write_clips(root, options.clips)
        save_model(root / "whisper", sizes)
        reference = Reference(root / "whisper", device)
        threads = max(1, torch.get_num_threads() // processes)
        variants = settings_of(device)
        pool = ProcessPoolExecutor(
            processes, get_context("spawn"), initializer=start_process, initargs=(root / "whisper", threads, variants)
        )
        stack.enter_context(pool)
        settings = {"audio_root": root, "device": device, "world_size": processes}
        if device == "cpu":  # there is one encoder per core
            settings |= {"workers": 0, "batch_seconds": options.cpu_batch_seconds}
        else:
            settings |= {"workers": options.workers, "batch_seconds": options.batch_seconds}
        speeds: dict[str, list[float]] = {name: [] for name in ("reference", *variants)}
        inside = total = 0.0
        warm_up, parts = rows[:4], [rows[i :: options.rounds] for i in range(options.rounds)]
        for number, part in enumerate([warm_up, *parts]):
            for name in speeds:
                folder = root / f"{name}{number}"
                started = time.perf_counter()
                if name == "reference":
                    reference(part, root, folder)
                else:
                    futures = [
                        pool.submit(extract_rank, name, part, folder, rank=rank, **settings)
                        for rank in range(processes)
                    ]
                    seconds = [future.result() for future in futures]
                took = time.perf_counter() - started
                if part is warm_up:
                    continue
                if name in PADDINGS:
                    inside, total = inside + sum(s[0] for s in seconds), total + sum(s[1] for s in seconds)
                speeds[name].append(len(part) / took)
                print(f"{geometry} on {device}: {name} {len(part) / took:.2f} clips/s", file=sys.stderr)
    return {
        "geometry": geometry,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processes": processes,
        "threads": threads,
        "audio_hours": sum(row["duration"] for row in rows) / 3600,
        "clips_per_second": {name: median(values) for name, values in speeds.items()},
        **{
            f"ratio_{name}": median(ours / theirs for ours, theirs in zip(speeds[name], speeds["reference"]))
            for name in variants
        },
        "encoder_share": inside / total,
    }


def main() -> None:
    """Measure all geometries that fit the machine; the JSON line has the first one's keys, and all in `results`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_seconds", type=float, default=120)
    parser.add_argument("--cpu_batch_seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode in advance, for the GPU")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads of reference and project"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [benchmark("small", SMALL, "cpu", options.threads, options)]
    if torch.cuda.is_available():
        results.append(benchmark("large-v3", LARGE_V3, "cuda", 1, options))
    print(json.dumps({**results[0], **vars(options), "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
