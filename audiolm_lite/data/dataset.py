"""Rows of manifests as items: audio (or its stored features) and a tokenised prompt."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from audiolm_lite.audio import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.data.batching import Item
from audiolm_lite.data.manifest import audio_path, read_manifest
from audiolm_lite.features.extract import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.prompt import PromptTemplate

log = logging.getLogger(__name__)


class DatasetError(ValueError):
    """Manifests, features and prompts that do not make a dataset together."""


class AudioTextDataset(Dataset):
    """Items of all rows of some manifests, with their lengths known beforehand.

    Everything that can be wrong with a row but its audio is found here, before training starts.

    Parameters
    ----------
    manifests : sequence of path
        JSON-lines manifests; audio paths are relative to their folders.
    template : PromptTemplate
        The prompt.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    num_tokens : callable
        Audio tokens from frames: the adapter's `num_tokens`.
    store : FeatureStore, optional
        Features to read instead of audio. Rows whose audio the extraction rejected are left out, with a warning and in
        `left_out`.
    encoder_frames : callable, optional
        Frames from samples, the encoder's `num_frames`, where there is no store and items carry waveforms.
    tasks : sequence of str, optional
        Keep rows of these tasks only.
    split : str, optional
        Keep rows of this split only.
    audio : str
        "normal", or a control that measures what the model answers without hearing: "shuffled" gives each clip the
        audio of another, "zeros" gives silence in the length of another (a clip's own length tells of its text).
    seed : int
        Of the controls' fixed permutation of clips.
    with_answer : bool
        False: items end before the answer, to generate from.

    Attributes
    ----------
    rows : list of dict
        The rows kept, in order.
    lengths : list of int
        Tokens of each item, audio and text; without a store the audio's are reckoned from the duration.
    left_out : list of str
        Ids of rows without features.

    Raises
    ------
    DatasetError
        No row is left, features are missing, or a clip is too short for one audio token.
    """

    def __init__(
        self,
        manifests: Sequence[str | Path],
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        num_tokens: Callable[[int], int],
        *,
        store: FeatureStore | None = None,
        encoder_frames: Callable[[int], int] | None = None,
        tasks: Sequence[str] | None = None,
        split: str | None = None,
        audio: str = "normal",
        seed: int = 0,
        with_answer: bool = True,
    ):
        if (store is None) == (encoder_frames is None):
            raise DatasetError(
                "dataset: give a feature store or encoder_frames (the encoder's num_frames), one of them."
            )
        if audio not in ("normal", "zeros", "shuffled"):
            raise DatasetError(f'dataset: audio is {audio!r}, it must be "normal", "zeros" or "shuffled".')
        self.template, self.tokenizer, self.with_answer = template, tokenizer, with_answer
        self.num_tokens, self.store, self.encoder_frames = num_tokens, store, encoder_frames
        self.audio = audio

        found = [(row, path) for path in manifests for row in read_manifest(path)]
        kept = [
            (row, path)
            for row, path in found
            if (tasks is None or row["task"] in tasks) and (split is None or row["split"] == split)
        ]
        self.left_out: list[str] = []
        if store is not None:
            kept = self._with_features(kept)
        if not kept:
            there = sorted({(row["task"], row["split"]) for row, _ in found})
            raise DatasetError(
                f"dataset: no row of {', '.join(map(str, manifests))} has tasks {tasks} and split {split}; "
                f"(task, split) there: {there}."
            )
        self.rows = [row for row, _ in kept]
        clips = [self._clip(row, path) for row, path in kept]
        self._clips = clips if audio == "normal" else _other_clips(clips, seed)
        self.lengths = self._measure()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """Read one item; raises AudioError where its audio cannot be read."""
        features = waveform = None
        if self.store is not None:
            features = self.store[self._clips[index]]  # [L, T, D]
            frames = features.shape[1]
        else:
            path, start, duration = self._clips[index]
            waveform = read_audio(path, start, duration)  # [S]
            frames = self.encoder_frames(len(waveform))
        if self.audio == "zeros":
            features = None if features is None else torch.zeros_like(features)
            waveform = None if waveform is None else torch.zeros_like(waveform)
        row = self.rows[index]
        input_ids, labels = self.template.encode(row, self.tokenizer, self.num_tokens(frames), self.with_answer)
        return Item(row, input_ids, labels, features, waveform)

    def length(self, index: int) -> int:
        """Tokens of an item, audio and text."""
        return self.lengths[index]

    def _clip(self, row: dict, manifest: str | Path) -> Any:
        """What names a row's audio: its key in the store, or (path, start, duration)."""
        if self.store is not None:
            return feature_key(row)
        return audio_path(manifest, row), row["start"], row["duration"]

    def _frames(self, clip: Any) -> int:
        if self.store is not None:
            return self.store.frames(clip)
        path, start, duration = clip
        seconds = audio_duration(path) - start if duration is None else duration
        return self.encoder_frames(round(seconds * SAMPLE_RATE))

    def _with_features(self, rows: list[tuple[dict, Any]]) -> list[tuple[dict, Any]]:
        """Leave out rows rejected at extraction; any other row without features is an error."""
        files: dict[str, Path] = {}
        for row, manifest in rows:
            file = audio_path(manifest, row)
            if files.setdefault(feature_key(row), file) != file:
                raise DatasetError(
                    f"dataset: {file} and {files[feature_key(row)]} share one key in {self.store.folder}; put the "
                    "manifests in one folder above their audio, so that their audio paths differ."
                )
        missing = [row for row, _ in rows if feature_key(row) not in self.store]
        if not missing:
            return rows
        folder = Path(self.store.folder)
        lines = [line for file in sorted(folder.glob("rejected*.jsonl")) for line in file.open(encoding="utf-8")]
        rejected = {json.loads(line)["key"] for line in lines}
        unknown = [row["id"] for row in missing if feature_key(row) not in rejected]
        if unknown:
            raise DatasetError(
                f"dataset: {len(unknown)} of {len(rows)} rows have no features in {folder}, the first is "
                f'"{unknown[0]}"; run the feature extraction on these manifests.'
            )
        self.left_out = [row["id"] for row in missing]
        log.warning(
            "%d of %d rows are left out: their audio was rejected, see rejected*.jsonl in %s",
            len(missing),
            len(rows),
            folder,
        )
        return [(row, manifest) for row, manifest in rows if feature_key(row) in self.store]

    def _measure(self) -> list[int]:
        """Lengths of all items; rows share clips, so each clip is asked for once."""
        tokens = {clip: self.num_tokens(self._frames(clip)) for clip in dict.fromkeys(self._clips)}
        lengths = []
        for row, clip in zip(self.rows, self._clips):
            if tokens[clip] < 1:
                raise DatasetError(
                    f'dataset: row "{row["id"]}": audio {clip} is too short for one audio token; '
                    "drop the row or use a smaller stride or pooling."
                )
            text = self.template.encode(row, self.tokenizer, 0, self.with_answer)[0]
            lengths.append(tokens[clip] + len(text))
        return lengths


def _other_clips(clips: list[Any], seed: int) -> list[Any]:
    """Give every clip another one, by one cycle through all clips in random order: rows of one clip stay together."""
    unique = list(dict.fromkeys(clips))
    if len(unique) < 2:
        raise DatasetError('dataset: audio "zeros" and "shuffled" need two clips at least.')
    order = np.random.default_rng(seed).permutation(len(unique))
    other = {unique[clip]: unique[after] for clip, after in zip(order, np.roll(order, -1))}
    return [other[clip] for clip in clips]
