"""Where a dataset reads its clips: from a feature store, or from audio files.

Both sources have the same functions. A clip is a dict {audio, start, duration} of a manifest, which may have a channel;
once read, it is a tensor whose dimension `time_dim` is its time.
"""

import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.long_audio import ClipPlan, LongAudio, Segment
from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.data.lengths import map_distinct
from audiolm_lite.data.manifest import audio_path
from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.data.selected_rows import DatasetError, SelectedRows
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore

log = logging.getLogger(__name__)

_KEYS_AT_ONCE = 1 << 16  # keys per look-up in the store


class FeatureSource:
    """Clips as stored encoder features [L, T, D].

    Parameters
    ----------
    store : FeatureStore
        The features of all clips, except those that the extraction rejected.

    Attributes
    ----------
    kind : str
        The field of `Item` that holds a clip.
    time_dim : int
        Dimension of a clip along which its length is counted, here in frames.
    unit_seconds : float
        Duration of one unit of that length.
    """

    kind, time_dim = "features", 1

    def __init__(self, store: FeatureStore):
        self.store, self.unit_seconds = store, store.fingerprint["frame_seconds"]

    def read(self, manifest: Path, clip: Mapping[str, Any]) -> Tensor:
        """Read the features [L, T, D] of a clip; raises FeatureStoreError if the store has none."""
        return self.store[feature_key(clip)]

    def zeros(self, manifest: Path, clip: Mapping[str, Any]) -> Tensor:
        """Return zeros in the shape of a clip."""
        return torch.zeros_like(self.read(manifest, clip))

    def length(self, manifest: Path, clip: Mapping[str, Any]) -> int:
        """Return the length of a clip in frames, without reading the clip."""
        return self.store.frames(feature_key(clip))

    def frames(self, length: int) -> int:
        """Return the encoder frames of a clip of this length."""
        return length

    def identity(self, manifest: Path, clip: Mapping[str, Any]) -> Hashable:
        """Return a value that is equal for rows of the same clip: its key in the store."""
        return feature_key(clip)

    def frames_of_rows(
        self, rows: SelectedRows, faults: dict[int, tuple[str, str]] | None = None, audio_only: bool = False
    ) -> np.ndarray:
        """Return the frames [N] int64 of the first clip of each row, -1 where the extraction rejected its audio.

        Parameters
        ----------
        rows : SelectedRows
        faults : dict, optional
            Receives `LeftOut.kind` and `LeftOut.reason` of each rejected row, by its index.
        audio_only : bool
            Of audio files, which are not read here.

        Raises
        ------
        DatasetError
            A row has no features although its audio was not rejected, or two files have one key.
        """
        _require_distinct_files(rows, self.store.folder)
        keys = (feature_key(clip) for _, clip in rows.clips())
        batches = iter(lambda: list(islice(keys, _KEYS_AT_ONCE)), [])
        frames = np.concatenate([np.empty(0, np.int64), *map(self.store.frames_of, batches)])
        missing = np.flatnonzero(frames < 0).tolist()
        if missing:
            rejected = self._rejected_keys()
            keys_of = {index: feature_key(rows[index]) for index in missing}
            unknown = [rows[index]["id"] for index, key in keys_of.items() if key not in rejected]
            if unknown:
                raise DatasetError(
                    f"dataset: {len(unknown)} of {len(frames)} rows have no features in {self.store.folder}, the first "
                    f'is "{unknown[0]}"; run the feature extraction on these manifests.'
                )
            log.warning(
                "%d of %d rows are left out: their audio was rejected, see rejected*.jsonl in %s",
                len(missing),
                len(frames),
                self.store.folder,
            )
            if faults is not None:
                faults.update({index: ("no features", rejected[key]) for index, key in keys_of.items()})
        return frames

    def _rejected_keys(self) -> dict[str, str]:
        """Keys of the clips that the extraction rejected, with the reasons."""
        files = sorted(Path(self.store.folder).glob("rejected*.jsonl"))
        entries = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
        return {entry["key"]: entry.get("reason", "rejected by the feature extraction") for entry in entries}


class WaveformSource:
    """Clips as samples [S] of audio files, float32 at 16 kHz.

    Parameters
    ----------
    num_frames : callable
        Encoder frames from a number of samples, as the encoder's `num_frames`. It raises ValueError for a length that
        the encoder does not take.
    long_audio : LongAudio, optional
        What is read of clips that are longer than the encoder accepts; None: all of them.

    Attributes
    ----------
    kind, time_dim, unit_seconds
        As in `FeatureSource`; a length is in samples.
    """

    kind, time_dim, unit_seconds = "waveform", 0, 1 / SAMPLE_RATE

    def __init__(self, num_frames: Callable[[int], int], long_audio: LongAudio | None = None):
        self.frames = num_frames
        self._crops = long_audio if long_audio is not None and long_audio.rule in ("crop", "random_crop") else None

    def read(self, manifest: Path, clip: Mapping[str, Any]) -> Tensor:
        """Read the samples [S] of a clip; raises AudioError if its file cannot be read."""
        if self._crops is not None:
            return self._crops.read(self._plan(self._crops, manifest, clip), manifest.parent)[0]
        path, channel = audio_path(manifest, clip), clip.get("channel")
        return read_audio(path, clip["start"], clip["duration"], channel=channel)

    def zeros(self, manifest: Path, clip: Mapping[str, Any]) -> Tensor:
        """Return zeros in the length of a clip, which is not read."""
        return torch.zeros(self.length(manifest, clip))

    def length(self, manifest: Path, clip: Mapping[str, Any]) -> int:
        """Return the length of a clip in samples, from its duration or its file's header."""
        if self._crops is not None:
            return round(self._plan(self._crops, manifest, clip).seconds * SAMPLE_RATE)
        seconds = clip["duration"] or audio_duration(audio_path(manifest, clip)) - clip["start"]
        return round(seconds * SAMPLE_RATE)

    @staticmethod
    def _plan(rule: LongAudio, manifest: Path, clip: Mapping[str, Any]) -> ClipPlan:
        segment = Segment(clip["audio"], clip["start"], clip["duration"], clip.get("channel"))
        return rule.plan(feature_key(clip), segment, manifest.parent)

    def identity(self, manifest: Path, clip: Mapping[str, Any]) -> Hashable:
        """Return a value that is equal for rows of the same clip: path, start, duration and channel."""
        return audio_path(manifest, clip), clip["start"], clip["duration"], clip.get("channel")

    def frames_of_rows(
        self, rows: SelectedRows, faults: dict[int, tuple[str, str]] | None = None, audio_only: bool = False
    ) -> np.ndarray:
        """Return the frames [N] int64 of the first clip of each row, from durations in the manifests or in the files.

        Parameters
        ----------
        rows : SelectedRows
        faults : dict, optional
            Receives `LeftOut.kind` and `LeftOut.reason` of each row whose clip cannot be used, by its index; its frames
            are -1. If None, the first such clip raises.
        audio_only : bool
            Only files that cannot be read are added to `faults`; what is wrong with a row raises.

        Raises
        ------
        DatasetError, AudioError
            A file cannot be read, or a clip starts after the end of its file or has a length that the encoder does not
            take.
        """
        files: dict[Path, float | AudioError] = {}
        samples = np.full(len(rows), -1, dtype=np.int64)
        for index, (manifest, clip) in enumerate(rows.clips()):
            try:
                samples[index] = round(_seconds(manifest, clip, files) * SAMPLE_RATE)
            except (AudioError, DatasetError) as error:
                if faults is None or (audio_only and not isinstance(error, AudioError)):
                    if isinstance(error, AudioError):
                        raise
                    raise DatasetError(f'dataset: row "{rows[index]["id"]}": {error}') from error
                faults[index] = ("unreadable", str(error))

        def frames(count: int) -> int:
            try:
                return self.frames(count) if count >= 0 else -1
            except ValueError as error:
                same = np.flatnonzero(samples == count).tolist()
                if faults is None or audio_only:
                    row = rows[same[0]]
                    raise DatasetError(f'dataset: row "{row["id"]}", {row["audio"]}: {error}') from error
                faults.update(dict.fromkeys(same, ("length", str(error))))
                return -1

        return map_distinct(frames, samples)


ClipSource = FeatureSource | WaveformSource


def _seconds(manifest: Path, clip: Mapping[str, Any], files: dict[Path, float | AudioError]) -> float:
    """Duration of a clip; `files` has those of the files, or their errors, which are read once."""
    if clip["duration"] is not None:
        return clip["duration"]
    path = audio_path(manifest, clip)
    if path not in files:
        try:
            files[path] = audio_duration(path)
        except AudioError as error:
            files[path] = error
    found = files[path]
    if isinstance(found, AudioError):
        raise found
    if found <= clip["start"]:
        raise DatasetError(
            f"its start {clip['start']} s is past the end of {path} ({found:.3f} s); correct the start or drop the row."
        )
    return found - clip["start"]


def _require_distinct_files(rows: SelectedRows, store: Path) -> None:
    """Raise DatasetError if manifests in different folders name different files by one key of the store."""
    if len({table.path.parent for table in rows.tables}) == 1:
        return
    relative: dict[Path, np.ndarray] = {}  # folder -> hashes of the audio paths that are relative to it
    for table in rows.tables:
        hashes = np.unique(np.fromiter((hash(name) for name in _relative_audio(table)), np.int64))
        folder = table.path.parent
        for other, earlier in relative.items():
            common = set(np.intersect1d(hashes, earlier).tolist()) if other != folder else set()
            if common:
                name = next(name for name in _relative_audio(table) if hash(name) in common)
                raise DatasetError(
                    f"dataset: {folder / name} and {other / name} have the same key in {store}; put the manifests in "
                    "one folder above their audio, so that their audio paths differ."
                )
        relative[folder] = np.union1d(hashes, relative.get(folder, hashes))


def _relative_audio(table: ManifestTable) -> Iterator[str]:
    clips = table.clips(np.arange(len(table), dtype=np.int32))
    return (audio for audio, *_ in clips if not os.path.isabs(audio))
