"""Extraction: the features of every clip of a manifest into a feature store, batched, resumable, shared by processes.

Worker processes decode ahead, this one encodes, and a thread writes behind:

    audio files --DecodedBatches--> waveforms --MemoryBoundEncoder--> features --thread--> FeatureWriter
"""

import json
import logging
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from audiolm_lite.audio.long_audio import LongAudio, Plan, Source, seconds_of
from audiolm_lite.config.errors import UserError
from audiolm_lite.features.clip_batches import DecodedBatches, make_batches
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import DTYPES, read_index
from audiolm_lite.features.writer import FeatureWriter, UnfitFeaturesError

log = logging.getLogger(__name__)

# Batches that may wait for the writer: enough that a shard's end holds nothing up, few enough for the memory.
_WAITING = 2


class ExtractionError(UserError, RuntimeError):
    """Too many clips could not be read."""


@dataclass(frozen=True)
class Summary:
    """Clips of one rank: newly stored, skipped because they were stored before, rejected; of those stored now, cut."""

    stored: int
    skipped: int
    rejected: int
    cut: int = 0


def extract(
    rows: Iterable[dict[str, Any]],
    encoder: nn.Module,
    folder: str | Path,
    *,
    audio_root: str | Path,
    batch_seconds: float = 120,
    dtype: str = "float16",
    long_audio: str = "reject",
    seed: int = 0,
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
        `frame_seconds`, `identity` and, if it takes no more than that, `max_seconds`. It is moved to `device` and put
        into eval mode.
    folder : str or Path
        The feature store; `rejected.jsonl` (`rejected-<rank>.jsonl` with several ranks) in it lists what could not be
        stored, as {key, reason}, and a later run tries these again. `long_audio.jsonl` lists what was cut.
    audio_root : str or Path
        Folder that the rows' audio paths are relative to.
    batch_seconds : float
        Audio computed at once, padding included, in seconds. Halved for good where the device's memory runs out.
    dtype : {"float16", "bfloat16", "float32", "int8"}
        How features are stored.
    long_audio : {"reject", "crop", "random_crop", "chunk"}
        What becomes of clips that are longer than the encoder takes; see `LongAudio`.
    seed : int
        Of random crops.
    workers : int
        Processes that decode audio ahead.
    device : str or device
        Where the encoder runs.
    rank, world_size : int
        This process and how many share the work: each takes every `world_size`-th of the sorted keys. A run with
        world_size 1 afterwards finds all stored.
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
        The folder holds a store of other settings, or cannot be written to.
    """
    folder, audio_root = Path(folder), Path(audio_root)
    sources = {
        feature_key(clip): Source(clip["audio"], float(clip["start"]), clip["duration"])
        for row in rows
        for clip in clips_of(row)
    }
    # Shared out before looking at what is stored: ranks may start at different times and would see different stores.
    mine = sorted(sources)[rank::world_size]
    encoder = encoder.to(device).eval()
    rule = LongAudio(long_audio, encoder, seed)
    share = {"rank": rank, "world_size": world_size}
    with FeatureWriter(folder, encoder.identity(), dtype, long_audio=str(rule), **share) as writer:
        todo = {key for key in mine if key not in writer}
        plans: dict[str, Plan] = {}
        rejected: dict[str, str] = {}
        for key in mine if todo else ():
            try:
                plans[key] = rule.plan(key, sources[key], seconds_of(sources[key], audio_root))
            except ValueError as error:
                if key in todo:
                    rejected[key] = str(error)
        unfinished = [batch for batch in make_batches(plans, batch_seconds) if not todo.isdisjoint(batch)]
        batches = DecodedBatches(plans, unfinished, todo, audio_root, rule)
        try:
            _run(batches, MemoryBoundEncoder(encoder, device, batch_seconds), writer, workers, rejected)
        finally:
            name = "rejected.jsonl" if world_size == 1 else f"rejected-{rank:02d}.jsonl"
            _write_list(folder / name, [{"key": key, "reason": reason} for key, reason in rejected.items()])
    if world_size == 1:
        for file in folder.glob("rejected-*.jsonl"):  # what these ranks could not do has just been tried again
            file.unlink()
        if (folder / "store.json").exists():
            FeatureStore(folder)  # makes the table of keys, for readers that may not write here
    cut = {key: entry for line in read_index(folder) for key, entry in line["cut"].items()}
    _write_list(folder / "long_audio.jsonl", [{"key": key, **entry} for key, entry in cut.items()])
    summary = Summary(
        stored=len(todo) - len(rejected),
        skipped=len(mine) - len(todo),
        rejected=len(rejected),
        cut=len(todo & cut.keys()),
    )
    if summary.cut:
        log.warning("%d clips were longer than the encoder takes: %s, listed in %s", summary.cut, rule, folder)
    if summary.rejected > max_rejects * len(mine):
        key, reason = next(iter(rejected.items()))
        raise ExtractionError(
            f"{summary.rejected} of {len(mine)} clips were rejected, more than max_rejects {max_rejects:g} allows; "
            f"all are listed in {folder / name}. The first: {key}: {reason}"
        )
    return summary


class MemoryBoundEncoder:
    """Encode waveforms in as few batches as the memory allows.

    Parameters
    ----------
    encoder : Module
        The encoder, on `device`.
    device : str or device
        Where it runs.
    batch_seconds : float
        Audio encoded at once, padding included; halved for good whenever the device's memory runs out.
    """

    def __init__(self, encoder: nn.Module, device: str | torch.device, batch_seconds: float):
        self.encoder, self.device, self.batch_seconds = encoder, device, batch_seconds
        self.halved = False

    def __call__(self, waves: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Encode waveforms [S]; returns (features [B, L, T, D], frames [B]) of the batches they were split into.

        Raises
        ------
        torch.OutOfMemoryError
            One waveform alone is too much.
        """
        done, results = 0, []
        while done < len(waves):
            group = waves[done : done + self._fitting(waves[done:])]
            result = self._encode(group)
            if result is None:
                self._halve(group)
            else:
                results.append(result)
                done += len(group)
        return results

    def _encode(self, waves: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        try:
            with torch.inference_mode():
                return self.encoder(padded.to(self.device), lengths.to(self.device))
        except torch.OutOfMemoryError:
            if len(waves) == 1:
                raise
        return None  # outside of `except`, where the error would keep the encoder's tensors alive

    def _halve(self, waves: list[Tensor]) -> None:
        self.batch_seconds = self._cost(len(waves), max(map(len, waves))) / 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.halved:
            log.warning(
                "%s ran out of memory on %d clips at once; going on with smaller batches. batch_seconds %.0f would "
                "have fitted better",
                self.device,
                len(waves),
                self.batch_seconds,
            )
        self.halved = True

    def _fitting(self, waves: list[Tensor]) -> int:
        longest = 0
        for count, wave in enumerate(waves):
            longest = max(longest, len(wave))
            if count and self._cost(count + 1, longest) > self.batch_seconds:
                return count
        return len(waves)

    def _cost(self, clips: int, samples: int) -> float:
        return clips * self.encoder.num_frames(samples) * self.encoder.frame_seconds


def _run(
    batches: DecodedBatches, encode: MemoryBoundEncoder, writer: FeatureWriter, workers: int, rejected: dict[str, str]
) -> None:
    """Decode, encode and write all batches; adds what cannot be to `rejected`."""
    waiting: deque[Future] = deque()
    # The thread starts with its first task, hence after the worker processes: a process with threads should not fork.
    with _Progress(batches) as progress, ThreadPoolExecutor(1) as thread:
        for keys, (lengths, samples, errors) in zip(
            batches.batches, DataLoader(batches, batch_size=None, num_workers=workers)
        ):
            rejected |= errors
            waves = dict(zip(lengths, _split(samples, lengths.values())))
            try:
                results = encode([piece for pieces in waves.values() for piece in pieces])
            except torch.OutOfMemoryError:
                results = _encode_singly(encode, waves, rejected)
            if len(waiting) == _WAITING:
                waiting.popleft().result()
            pieces = {key: len(parts) for key, parts in waves.items()}
            waiting.append(thread.submit(_store, writer, results, pieces, batches, rejected))
            progress.update(keys)
        for task in waiting:
            task.result()


def _encode_singly(
    encode: MemoryBoundEncoder, waves: dict[str, list[Tensor]], rejected: dict[str, str]
) -> list[tuple[Tensor, Tensor]]:
    """Encode what can be of a batch that holds a clip too large for the memory."""
    results = []
    for key in list(waves):
        try:
            results += encode(waves[key])
        except torch.OutOfMemoryError:
            rejected[key] = f"too large for the memory of {encode.device} even alone; split it into segments"
            del waves[key]
    return results


def _store(
    writer: FeatureWriter,
    results: list[tuple[Tensor, Tensor]],
    pieces: dict[str, int],
    batches: DecodedBatches,
    rejected: dict[str, str],
) -> None:
    """Runs in a thread, so that neither conversion nor disk holds the encoder up."""
    encoded = []
    for features, frames in results:
        if features.is_cuda and writer.dtype != "int8":
            features = features.to(DTYPES[writer.dtype])  # on the device: half as much to fetch
        encoded += [clip[:, :count] for clip, count in zip(features.cpu(), frames.tolist())]
    for key, count in pieces.items():
        parts, encoded = encoded[:count], encoded[count:]
        if key not in batches.todo:
            continue
        try:
            writer.add(key, parts[0] if count == 1 else torch.cat(parts, dim=1), batches.plans[key].cut)
        except UnfitFeaturesError as error:
            rejected[key] = str(error)


def _split(samples: Tensor, lengths: Iterable[list[int]]) -> list[list[Tensor]]:
    """Samples in a row -> the pieces of each clip."""
    flat = iter(samples.split([length for pieces in lengths for length in pieces]))
    return [[next(flat) for _ in pieces] for pieces in lengths]


class _Progress:
    """A bar over the audio to encode, since clips differ in length: clips/s, audio-hours/hour, time left."""

    def __init__(self, batches: DecodedBatches):
        self.plans, self.todo = batches.plans, batches.todo
        self.clips, self.seconds, self.total = 0, 0.0, sum(len(self.todo.intersection(b)) for b in batches.batches)
        self.bar = tqdm(
            total=sum(self._cost(batch) for batch in batches.batches),
            bar_format="features: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=int(os.environ.get("LOCAL_RANK", 0)) > 0,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, keys: list[str]) -> None:
        self.clips += len(self.todo.intersection(keys))
        self.seconds += sum(self.plans[key].seconds for key in keys)
        elapsed = self.bar.format_dict["elapsed"] or 1e-9
        rates = f"{self.clips / elapsed:.3g} clips/s, {self.seconds / elapsed:.3g} audio-hours/hour"
        self.bar.set_postfix_str(f"{self.clips}/{self.total} clips, {rates}", refresh=False)
        self.bar.update(self._cost(keys))

    def _cost(self, keys: list[str]) -> float:
        return sum(self.plans[key].pieces * self.plans[key].piece_seconds for key in keys)


def _write_list(file: Path, entries: list[dict[str, Any]]) -> None:
    if not entries:
        file.unlink(missing_ok=True)
        return
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    # A name that is no valid Unicode must not stop the list of such names: it becomes a JSON escape.
    unfinished.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, file)
