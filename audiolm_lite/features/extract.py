"""Extraction: the features of every clip of a manifest into a feature store. Batched, resumable, in several processes.

Worker processes decode, this process encodes, and a thread writes, at the same time:

    audio files --DecodedBatches--> waveforms --MemoryBoundEncoder--> features --thread--> FeatureWriter
"""

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from audiolm_lite.audio.long_audio import ClipPlan, LongAudio, Segment
from audiolm_lite.config.errors import UserError
from audiolm_lite.features.bounded_encoder import MemoryBoundEncoder
from audiolm_lite.features.clip_batches import DecodedBatches, make_batches
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.features.progress import ExtractionProgress
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import DTYPES, read_index
from audiolm_lite.features.writer import FeatureWriter, UnfitFeaturesError
from audiolm_lite.storage.atomic import write_bytes

log = logging.getLogger(__name__)

# Batches that may wait for the writer: enough that closing a shard does not delay the encoder, few enough for memory.
_MAX_WAITING = 2


class ExtractionError(UserError, RuntimeError):
    """Too many clips could not be read."""


@dataclass(frozen=True)
class Summary:
    """Numbers of clips of one rank.

    Attributes
    ----------
    stored : int
        Stored by this run.
    skipped : int
        Stored by an earlier run.
    rejected : int
        Without features, because they could not be read, encoded or stored.
    cut : int
        Of those stored by this run, the clips that were longer than the encoder accepts.
    """

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
        `frame_seconds`, `identity` and, if it accepts no longer clips, `max_seconds`. It is moved to `device` and set
        to eval mode.
    folder : str or Path
        The feature store. Its file `rejected.jsonl` (with several ranks, `rejected-<rank>.jsonl`) lists the clips
        without features as {key, reason}; the next run tries these again. `long_audio.jsonl` lists the clips that were
        longer than the encoder accepts.
    audio_root : str or Path
        Folder to which the rows' audio paths are relative.
    batch_seconds : float
        Seconds of audio encoded at once, padding included. Halved permanently when the device runs out of memory.
    dtype : {"float16", "bfloat16", "float32", "int8"}
        dtype on disk.
    long_audio : {"reject", "crop", "random_crop", "chunk"}
        Rule for clips that are longer than the encoder accepts; see `LongAudio`.
    seed : int
        For random crops.
    workers : int
        Processes that decode audio; 0 decodes in this process.
    device : str or device
        Where the encoder runs.
    rank, world_size : int
        This process and the number of processes: each takes every `world_size`-th of the sorted keys. A run with
        world_size 1 afterwards finds all features stored.
    max_rejects : float
        Fraction of this rank's clips that may be rejected.

    Returns
    -------
    Summary
        Numbers of this rank's clips.

    Raises
    ------
    ExtractionError
        More than `max_rejects` were rejected; all other features are stored.
    FeatureStoreError
        The folder has a store of other settings, or cannot be written to.

    Examples
    --------
    >>> import soundfile
    >>> from audiolm_lite.encoders.speaker import SpeakerEncoder
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", torch.zeros(16000).numpy(), 16000)
    >>> encoder = SpeakerEncoder(None, channels=(8,) * 5, attention_channels=8, embedding_dim=4)
    >>> rows = [{"audio": "a.wav", "start": 0.0, "duration": 1.0}]
    >>> extract(rows, encoder, folder / "features", audio_root=folder)
    Summary(stored=1, skipped=0, rejected=0, cut=0)
    """
    folder, audio_root = Path(folder), Path(audio_root)
    segments = {
        feature_key(clip): Segment(clip["audio"], float(clip["start"]), clip["duration"], clip.get("channel"))
        for row in rows
        for clip in clips_of(row)
    }
    # Split before looking at what is stored: ranks may start at different times and would find different stores.
    own = sorted(segments)[rank::world_size]
    encoder = encoder.to(device).eval()
    rule = LongAudio(long_audio, encoder, seed)
    process = {"rank": rank, "world_size": world_size}
    rejects = folder / ("rejected.jsonl" if world_size == 1 else f"rejected-{rank:02d}.jsonl")
    with FeatureWriter(folder, encoder.identity(), dtype, long_audio=str(rule), **process) as writer:
        todo = {key for key in own if key not in writer}
        plans, faults = _plan(own if todo else [], segments, rule, audio_root)
        rejected = {key: fault for key, fault in faults.items() if key in todo}
        unfinished = [batch for batch in make_batches(plans, batch_seconds) if not todo.isdisjoint(batch)]
        batches = DecodedBatches(plans, unfinished, todo, audio_root, rule)
        try:
            _encode_and_store(batches, MemoryBoundEncoder(encoder, device, batch_seconds), writer, workers, rejected)
        finally:
            _write_lines(rejects, ({"key": key, "reason": reason} for key, reason in rejected.items()))
    if world_size == 1:
        for file in folder.glob("rejected-*.jsonl"):  # this run has tried the clips in these lists again
            file.unlink()
        if (folder / "store.json").exists():
            FeatureStore(folder)  # makes the table of keys, for readers without write permission
    cut = {key: entry for line in read_index(folder) for key, entry in line["cut"].items()}
    _write_lines(folder / "long_audio.jsonl", ({"key": key, **entry} for key, entry in cut.items()))
    summary = Summary(
        stored=len(todo) - len(rejected),
        skipped=len(own) - len(todo),
        rejected=len(rejected),
        cut=len(todo & cut.keys()),
    )
    if summary.cut:
        log.warning(
            "%d clips are longer than the encoder accepts (rule %s); listed in %s",
            summary.cut,
            rule,
            folder / "long_audio.jsonl",
        )
    if summary.rejected > max_rejects * len(own):
        key, reason = next(iter(rejected.items()))
        raise ExtractionError(
            f"{summary.rejected} of {len(own)} clips were rejected, more than max_rejects {max_rejects:g} allows; "
            f"all are listed in {rejects}. The first: {key}: {reason}"
        )
    return summary


def _plan(
    keys: list[str], segments: Mapping[str, Segment], rule: LongAudio, audio_root: Path
) -> tuple[dict[str, ClipPlan], dict[str, str]]:
    """Plan clips; returns the plans, and the reasons for the clips without one."""
    plans, faults = {}, {}
    for key in keys:
        try:
            plans[key] = rule.plan(key, segments[key], audio_root)
        except ValueError as error:  # AudioError is one
            faults[key] = str(error)
    return plans, faults


def _encode_and_store(
    batches: DecodedBatches, encode: MemoryBoundEncoder, writer: FeatureWriter, workers: int, rejected: dict[str, str]
) -> None:
    """Decode, encode and write all batches; clips that cannot be are added to `rejected`."""
    waiting: deque[Future] = deque()
    # The workers are forked first, so that they inherit neither a lock of the bar nor one of the thread.
    decoded = iter(DataLoader(batches, batch_size=None, num_workers=workers))
    with ExtractionProgress(batches) as progress, ThreadPoolExecutor(1) as thread:
        for keys, (lengths, samples, errors) in zip(batches.batches, decoded):
            rejected |= errors
            clips = dict(zip(lengths, _split(samples, lengths.values())))
            try:
                results = encode([chunk for chunks in clips.values() for chunk in chunks])
            except torch.OutOfMemoryError:
                results = _encode_one_by_one(encode, clips, batches.todo, rejected)
            if len(waiting) == _MAX_WAITING:
                waiting.popleft().result()
            counts = {key: len(chunks) for key, chunks in clips.items()}
            waiting.append(thread.submit(_store, writer, results, counts, batches, rejected))
            progress.update(keys)
        for task in waiting:
            task.result()


def _encode_one_by_one(
    encode: MemoryBoundEncoder, clips: dict[str, list[Tensor]], todo: set[str], rejected: dict[str, str]
) -> list[tuple[Tensor, Tensor]]:
    """Encode a batch with a clip that is too large for the memory; such clips are removed from `clips`.

    Those of `todo` are added to `rejected`. The others are stored already, and are in the batch for equal batches only.
    """
    results = []
    for key in list(clips):
        try:
            results += encode(clips[key])
        except torch.OutOfMemoryError:
            if key in todo:
                rejected[key] = f"too large for the memory of {encode.device} even alone; split it into segments"
            del clips[key]
    return results


def _store(
    writer: FeatureWriter,
    results: list[tuple[Tensor, Tensor]],
    counts: dict[str, int],
    batches: DecodedBatches,
    rejected: dict[str, str],
) -> None:
    """Store the clips of a batch, from the features of their chunks; runs in a thread, so that the encoder never waits.

    Parameters
    ----------
    writer : FeatureWriter
        The store.
    results : list of tuple
        (features [B, L, T, D], frames [B]) of all chunks in their order.
    counts : dict
        Chunks of each clip.
    batches : DecodedBatches
        Which clips are to be stored, and their plans.
    rejected : dict
        Clips that cannot be stored are added.
    """
    chunks = _trimmed(results, writer.dtype)
    for key, count in counts.items():
        features = [next(chunks) for _ in range(count)]
        if key not in batches.todo:
            continue
        try:
            writer.add(key, features[0] if count == 1 else torch.cat(features, dim=1), batches.plans[key].cut)
        except UnfitFeaturesError as error:
            rejected[key] = str(error)


def _trimmed(results: list[tuple[Tensor, Tensor]], dtype: str) -> Iterator[Tensor]:
    """Yield the features [L, T, D] of each chunk on the CPU, without padding."""
    for features, frames in results:
        if features.is_cuda and dtype != "int8":
            features = features.to(DTYPES[dtype])  # on the device, so that half as much is copied
        yield from (chunk[:, :count] for chunk, count in zip(features.cpu(), frames.tolist()))


def _split(samples: Tensor, lengths: Iterable[list[int]]) -> list[list[Tensor]]:
    """Split the samples of a batch into the chunks of each clip."""
    chunks = iter(samples.split([length for clip in lengths for length in clip]))
    return [[next(chunks) for _ in clip] for clip in lengths]


def _write_lines(file: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a JSON line per entry; without entries, delete the file."""
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    if lines:
        # A name that is not valid Unicode becomes a JSON escape.
        write_bytes(file, lines.encode("utf-8", "backslashreplace"))
    else:
        file.unlink(missing_ok=True)
