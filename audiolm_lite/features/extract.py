"""Extraction: the features of every clip of a manifest into a feature store, batched, resumable, sharded over ranks."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from audiolm_lite.audio import SAMPLE_RATE, AudioError, audio_duration, read_audio
from audiolm_lite.features.store import FeatureWriter


class ExtractionError(RuntimeError):
    """Too many clips could not be read."""


@dataclass(frozen=True)
class Summary:
    """Clips of one rank: newly stored, skipped because they were stored before, rejected."""

    stored: int
    skipped: int
    rejected: int


def feature_key(row: dict[str, Any]) -> str:
    """Key of a manifest row's features: its audio path, followed by `#start+duration` where it is a segment."""
    start, duration = float(row.get("start", 0.0)), row.get("duration")
    if start == 0 and duration is None:
        return row["audio"]
    return f"{row['audio']}#{start}+{'' if duration is None else float(duration)}"


def extract(
    rows: Iterable[dict[str, Any]],
    encoder: nn.Module,
    folder: str | Path,
    *,
    audio_root: str | Path,
    batch_seconds: float = 120,
    dtype: str = "float16",
    workers: int = 0,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
    max_rejects: float = 0.01,
) -> Summary:
    """Compute and store the features of every distinct clip that is not in the store yet.

    Parameters
    ----------
    rows : iterable of dict
        Manifest rows.
    encoder : Module
        Maps waveforms [B, S] and lengths [B] to features [B, L, T, D] and frames [B]; has `num_frames`,
        `frame_seconds`, `identity`. It is moved to `device` and put into eval mode.
    folder : str or Path
        The feature store; `rejected.jsonl` (`rejected-<rank>.jsonl` with several ranks) in it lists what could not be
        stored, as {key, reason}. A later run tries these again.
    audio_root : str or Path
        Folder that the rows' audio paths are relative to.
    batch_seconds : float
        Audio computed at once, padding included, in seconds.
    dtype : {"float16", "bfloat16", "float32"}
        How features are stored.
    workers : int
        Processes that decode audio ahead.
    device : str or device
        Where the encoder runs.
    rank, world_size : int
        This process and how many share the work.
    max_rejects : float
        Share of this rank's clips that may be rejected.

    Returns
    -------
    Summary
        Counts of this rank's clips.

    Raises
    ------
    ExtractionError
        More than `max_rejects` were rejected; what could be stored is stored.
    FeatureStoreError
        The folder holds a store of other settings.
    """
    folder, audio_root = Path(folder), Path(audio_root)
    unique = {feature_key(row): row for row in rows}
    # Shared out before looking at what is stored: ranks may start at different times and would see different stores.
    mine = sorted(unique)[rank::world_size]
    encoder = encoder.to(device).eval()
    rejected: dict[str, str] = {}
    with FeatureWriter(folder, encoder.identity(), dtype=dtype, rank=rank) as writer:
        todo = [key for key in mine if key not in writer]
        costs = {}  # key -> seconds the encoder computes, padding included
        for key in todo:
            try:
                samples = round(_seconds(unique[key], audio_root) * SAMPLE_RATE)
                costs[key] = encoder.num_frames(samples) * encoder.frame_seconds
            except ValueError as error:
                rejected[key] = str(error)
        clips = _Clips(unique, _batches(costs, batch_seconds), audio_root)
        try:
            with tqdm(total=len(costs), desc="features", unit=" clips", disable=rank > 0) as progress:
                for waves, errors in DataLoader(clips, batch_size=None, num_workers=workers):
                    progress.update(len(waves) + len(errors))
                    for key in list(waves):
                        try:
                            encoder.num_frames(len(waves[key]))  # the manifest's duration may have been wrong
                        except ValueError as error:
                            errors[key] = str(error)
                            del waves[key]
                    rejected |= errors
                    if waves:
                        _store(writer, encoder, waves, device)
        finally:
            name = "rejected.jsonl" if world_size == 1 else f"rejected-{rank:02d}.jsonl"
            _write_rejected(folder / name, rejected)
    summary = Summary(len(todo) - len(rejected), len(mine) - len(todo), len(rejected))
    if summary.rejected > max_rejects * len(mine):
        key, reason = next(iter(rejected.items()))
        raise ExtractionError(
            f"{summary.rejected} of {len(mine)} clips were rejected, more than max_rejects {max_rejects:g} allows; "
            f"all are listed in {folder / name}. The first: {key}: {reason}"
        )
    return summary


def _store(writer: FeatureWriter, encoder: nn.Module, waves: dict[str, Tensor], device: Any) -> None:
    lengths = torch.tensor([len(wave) for wave in waves.values()])
    padded = nn.utils.rnn.pad_sequence(list(waves.values()), batch_first=True)
    with torch.inference_mode():
        features, frames = encoder(padded.to(device), lengths.to(device))
    features = features.to(writer.dtype).cpu()
    for key, clip, count in zip(waves, features, frames.tolist()):
        writer.add(key, clip[:, :count])


class _Clips(Dataset):
    """Decoded batches: item i -> {key: waveform [S]} and {key: reason} of what could not be read."""

    def __init__(self, rows: dict[str, dict], batches: list[list[str]], audio_root: Path):
        self.rows, self.batches, self.audio_root = rows, batches, audio_root

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        waves, errors = {}, {}
        for key in self.batches[index]:
            row = self.rows[key]
            try:
                waves[key] = read_audio(self.audio_root / row["audio"], row.get("start", 0.0), row.get("duration"))
            except AudioError as error:
                errors[key] = str(error)
        return waves, errors


def _seconds(row: dict[str, Any], audio_root: Path) -> float:
    if row.get("duration") is not None:
        return row["duration"]
    return audio_duration(audio_root / row["audio"]) - row.get("start", 0.0)


def _batches(costs: dict[str, float], batch_seconds: float) -> list[list[str]]:
    """Keys in batches of similar cost, longest first: if the device's memory does not suffice, it shows at once."""
    batches: list[list[str]] = []
    longest = 0.0
    for key in sorted(costs, key=lambda key: -costs[key]):
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = costs[key]
        batches[-1].append(key)
    return batches


def _write_rejected(file: Path, rejected: dict[str, str]) -> None:
    if not rejected:
        file.unlink(missing_ok=True)
        return
    unfinished = file.with_name(file.name + ".tmp")
    lines = [json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n" for key, reason in rejected.items()]
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, file)
