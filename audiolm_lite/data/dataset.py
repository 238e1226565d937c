"""Rows of manifests as items: audio (or its stored features) and a tokenised prompt."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from audiolm_lite.audio import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.data.batching import Item
from audiolm_lite.data.lengths import text_tokens
from audiolm_lite.data.manifest import audio_path
from audiolm_lite.data.mixing import Mixture, temperature_weights
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.rows import Rows
from audiolm_lite.data.table import ManifestTable
from audiolm_lite.features.extract import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.prompt import PromptTemplate

log = logging.getLogger(__name__)


class DatasetError(ValueError):
    """Manifests, features and prompts that do not make a dataset together."""


class AudioTextDataset(Dataset):
    """Items of all rows of some manifests, with their lengths known beforehand.

    Everything that can be wrong with a row but its audio is found here, before training starts. Rows stay in their
    manifests' tables and are read one by one, so neither this process nor its workers hold them.

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
        Of the controls' fixed permutation of clips, of questions that are drawn, and of mixing.
    with_answer : bool
        False: items end before the answer, to generate from.
    question_files : sequence of path, optional
        Where rows without an instruction take their question from (see `Questions`); an empty list gives the default
        question. None: every row needs an instruction.
    weights : sequence of float, optional
        Share of each manifest in an epoch of training, relative to the others.
    temperature : float, optional
        Takes shares from the manifests' sizes instead: size ** (1 / temperature).

    Attributes
    ----------
    rows : Rows
        The rows kept, in order.
    lengths : ndarray
        Tokens [N] int32 of each item, audio and text; without a store the audio's are reckoned from the duration, and
        a row that draws its question counts with the longest.
    left_out : list of str
        Ids of rows without features.
    mixture : Mixture or None
        Items of each epoch, where manifests are mixed; None: each item once.

    Raises
    ------
    DatasetError
        No row is left, features or instructions are missing, or a clip is too short for one audio token.
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
        question_files: Sequence[str | Path] | None = None,
        weights: Sequence[float] | None = None,
        temperature: float | None = None,
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

        tables = [ManifestTable(path) for path in manifests]
        questions = None if question_files is None else Questions(question_files, len(tables), seed)
        self.rows = Rows(tables, [table.select(tasks, split) for table in tables], questions)
        self._require_instructions()
        self.left_out: list[str] = []
        frames = self._live_frames() if store is None else self._stored_frames()
        if len(self.rows) == 0:
            there = sorted(set().union(*(table.tasks_and_splits() for table in tables)))
            raise DatasetError(
                f"dataset: no row of {', '.join(map(str, manifests))} has tasks {tasks} and split {split}; "
                f"(task, split) there: {there}."
            )
        tokens = self._audio_tokens(frames)
        # Item -> the item whose clip it hears. Tensors, for the same reason as in `Rows`.
        self._heard = None if audio == "normal" else torch.from_numpy(self._other_clips(seed))
        if self._heard is not None:
            tokens = tokens[self._heard.numpy()]
        self._lengths = torch.from_numpy(tokens + self._text_tokens())
        if temperature is not None:
            weights = temperature_weights(self.rows.sizes, temperature)
        self.mixture = None if weights is None else Mixture(self.rows.sizes, weights, seed)
        if self.mixture is not None:
            log.info("An epoch has %s", self.mixture.describe([str(path) for path in manifests], self.lengths))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens [N] int32 of each item."""
        return self._lengths.numpy()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """Read one item; raises AudioError where its audio cannot be read."""
        row = self.rows[index]
        heard = index if self._heard is None else int(self._heard[index])
        heard_row = row if heard == index else self.rows[heard]
        features = waveform = None
        if self.store is not None:
            features = self.store[feature_key(heard_row)]  # [L, T, D]
            frames = features.shape[1]
        else:
            path = audio_path(self.rows.table_of(heard).path, heard_row)
            waveform = read_audio(path, heard_row["start"], heard_row["duration"])  # [S]
            frames = self.encoder_frames(len(waveform))
        if self.audio == "zeros":
            features = None if features is None else torch.zeros_like(features)
            waveform = None if waveform is None else torch.zeros_like(waveform)
        input_ids, labels = self.template.encode(row, self.tokenizer, self.num_tokens(frames), self.with_answer)
        return Item(row, input_ids, labels, features, waveform)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that questions are drawn for; before the workers of a DataLoader start."""
        if self.rows.questions is not None:
            self.rows.questions.epoch = epoch

    def _require_instructions(self) -> None:
        if self.rows.questions is not None:
            return
        for table, numbers in self.rows.chosen():
            without = numbers[pc.is_null(table.column("instruction")).to_numpy()[numbers]]
            if len(without):
                raise DatasetError(
                    f"dataset: {len(without)} rows of {table.path} have no instruction, the first is "
                    f'"{table[int(without[0])]["id"]}"; write one, or set question_files: a list of files with one '
                    "question a line, or [] for the default question."
                )

    def _clips(self) -> Iterator[Any]:
        """What names each item's own audio: its key in the store, or (path, start, duration)."""
        for table, numbers in self.rows.chosen():
            for audio, start, duration in table.values(numbers, "audio", "start", "duration"):
                if self.store is not None:
                    yield feature_key({"audio": audio, "start": start, "duration": duration})
                else:
                    yield table.path.parent / audio, start, duration

    def _stored_frames(self) -> np.ndarray:
        """Frames [N] int64 of each item; leaves out rows rejected at extraction, any other row without is an error."""
        self._require_distinct_files()
        store = self.store
        frames = np.fromiter((store.frames(key) if key in store else -1 for key in self._clips()), np.int64)
        missing = np.flatnonzero(frames < 0)
        if len(missing) == 0:
            return frames
        folder = Path(store.folder)
        lines = [line for file in sorted(folder.glob("rejected*.jsonl")) for line in file.open(encoding="utf-8")]
        rejected = {json.loads(line)["key"] for line in lines}
        rows = [self.rows[index] for index in missing.tolist()]
        unknown = [row["id"] for row in rows if feature_key(row) not in rejected]
        if unknown:
            raise DatasetError(
                f"dataset: {len(unknown)} of {len(frames)} rows have no features in {folder}, the first is "
                f'"{unknown[0]}"; run the feature extraction on these manifests.'
            )
        self.left_out = [row["id"] for row in rows]
        log.warning(
            "%d of %d rows are left out: their audio was rejected, see rejected*.jsonl in %s",
            len(rows),
            len(frames),
            folder,
        )
        self.rows = self.rows.keep(frames >= 0)
        return frames[frames >= 0]

    def _require_distinct_files(self) -> None:
        """Refuse manifests in several folders whose relative paths name different files by one key."""
        if len({table.path.parent for table in self.rows.tables}) == 1:
            return
        seen: list[ManifestTable] = []
        for table in self.rows.tables:
            audio = table.column("audio")
            relative = audio.filter(pc.invert(pc.starts_with(audio, "/")))
            for other in seen:
                if other.path.parent == table.path.parent:
                    continue
                shared = relative.filter(pc.is_in(relative, value_set=other.column("audio").unique()))
                if len(shared):
                    name = shared[0].as_py()
                    raise DatasetError(
                        f"dataset: {table.path.parent / name} and {other.path.parent / name} share one key in "
                        f"{self.store.folder}; put the manifests in one folder above their audio, so that their audio "
                        "paths differ."
                    )
            seen.append(table)

    def _live_frames(self) -> np.ndarray:
        """Frames [N] int64 of each item, from the durations in the manifests or else of the files."""
        files: dict[Path, float] = {}
        samples = np.empty(len(self.rows), dtype=np.int64)
        for index, (path, start, duration) in enumerate(self._clips()):
            if duration is None:
                if path not in files:
                    files[path] = audio_duration(path)
                duration = files[path] - start
                if duration <= 0:
                    raise DatasetError(
                        f'dataset: row "{self.rows[index]["id"]}": its start {start} s is past the end of {path} '
                        f"({files[path]:.3f} s); correct the start or drop the row."
                    )
            samples[index] = round(duration * SAMPLE_RATE)

        def frames(count: int) -> int:
            try:
                return self.encoder_frames(count)
            except ValueError as error:
                row = self.rows[int(np.argmax(samples == count))]
                raise DatasetError(f'dataset: row "{row["id"]}", {row["audio"]}: {error}') from error

        return _of_each(frames, samples)

    def _audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """Audio tokens [N] int32 of each item's own clip."""
        tokens = _of_each(self.num_tokens, frames).astype(np.int32)
        if (tokens < 1).any():
            index = int(np.argmax(tokens < 1))
            row = self.rows[index]
            raise DatasetError(
                f'dataset: row "{row["id"]}": audio {row["audio"]} ({frames[index]} frames) is too short for one audio '
                "token; drop the row or use a smaller stride or pooling."
            )
        return tokens

    def _text_tokens(self) -> np.ndarray:
        """Text tokens [N] int32 of each item, with the longest question where it is drawn."""

        def tokens(text: str) -> int:
            return len(self.tokenizer.encode(text, add_special_tokens=False))

        counts = []
        for place, (table, numbers) in enumerate(self.rows.chosen()):
            questions = self.rows.questions
            question = None if questions is None else max(questions.pools[place], key=tokens)

            def count(row: dict, question: str | None = question) -> int:
                if row["instruction"] is None:
                    row["instruction"] = question
                return len(self.template.encode(row, self.tokenizer, 0, self.with_answer)[0])

            settings = {"template": self.template.template, "with_answer": self.with_answer, "question": question}
            counts.append(text_tokens(table, numbers, count, self.tokenizer, settings))
        return np.concatenate(counts)

    def _other_clips(self, seed: int) -> np.ndarray:
        """For each item, an item [N] int32 with another clip: one cycle through all clips in random order.

        Rows of one clip stay together.
        """
        places: dict[Any, int] = {}
        clips = np.array([places.setdefault(clip, len(places)) for clip in self._clips()])  # [N] clip of each item
        if len(places) < 2:
            raise DatasetError('dataset: audio "zeros" and "shuffled" need two clips at least.')
        items = np.unique(clips, return_index=True)[1]  # clip -> its first item
        order = np.random.default_rng(seed).permutation(len(places))
        other = np.empty_like(order)
        other[order] = np.roll(order, -1)
        return items[other[clips]].astype(np.int32)


def _of_each(function: Callable[[int], int], values: np.ndarray) -> np.ndarray:
    """`function` of each of the values [N], called once for all equal ones."""
    unique, places = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in unique.tolist()], dtype=np.int64)[places]
