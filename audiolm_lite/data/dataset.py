"""Rows of manifests as items: audio (or its stored features) and a tokenised prompt."""

import copy
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.data.batching import Item
from audiolm_lite.data.lengths import largest, of_each, text_tokens
from audiolm_lite.data.manifest import audio_path
from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.data.mixing import Mixture, temperature_weights
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import DatasetError, Rows
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.prompt import PromptTemplate

log = logging.getLogger(__name__)

_PORTION = 1 << 16  # keys looked up at once


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
    max_tokens : int, optional
        Most tokens of an item. A longer one is an error, unless `shorten` says what gives way.
    shorten : str, optional
        A field of the template, such as "transcript", of which the end is cut; "audio", of which the end is cut; "drop"
        leaves the row out. How many rows it happens to is logged.
    augmentation : Augmentation, optional
        Changes each clip that is read, and with its length the prompt; `lengths` stay those of the unchanged clips.

    Attributes
    ----------
    rows : Rows
        The rows kept, in order.
    lengths : ndarray
        Tokens [N] int32 of each item, audio and text; without a store the audio's are reckoned from the duration, and
        a row that draws its question counts with the longest.
    left_out : list of str
        Ids of rows without features, and of those dropped as too long.
    shortened : dict
        Item -> tokens that its field or audio loses.
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
        max_tokens: int | None = None,
        shorten: str | None = None,
        augmentation: Callable[[torch.Tensor, str], torch.Tensor] | None = None,
    ):
        if (store is None) == (encoder_frames is None):
            raise DatasetError(
                "dataset: give a feature store or encoder_frames (the encoder's num_frames), one of them."
            )
        if audio not in ("normal", "zeros", "shuffled"):
            raise DatasetError(f'dataset: audio is {audio!r}, it must be "normal", "zeros" or "shuffled".')
        self.template, self.tokenizer, self.with_answer = template, tokenizer, with_answer
        self.num_tokens, self.store, self.encoder_frames = num_tokens, store, encoder_frames
        self.audio, self.shorten, self.augmentation = audio, shorten, augmentation
        self.shortened: dict[int, int] = {}

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
        further = self._further_clips()
        # Item -> the item whose clip it hears. Tensors, for the same reason as in `Rows`.
        self._heard = None if audio == "normal" else torch.from_numpy(self._other_clips(seed))
        lengths = self._text_tokens() + (tokens if self._heard is None else tokens[self._heard.numpy()])
        for index, clips in further.items():
            lengths[index] += sum(self._further_tokens(index, clips, tokens))
        self._lengths = torch.from_numpy(lengths)
        if shorten is not None and (max_tokens is None or audio != "normal"):
            raise DatasetError("dataset: shorten goes with max_tokens, and not with the controls of what is heard.")
        if max_tokens is not None:
            self._fit(max_tokens, shorten)
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
        excess = self.shortened.get(index, 0)
        heard = self._read_clips(index, row)
        counts = [self.num_tokens(frames) for _, frames in heard]
        if excess and self.shorten == "audio":
            heard[-1] = self._shorter_clip(heard[-1], counts[-1] - excess)
            counts[-1] = self.num_tokens(heard[-1][1])
        cut = (self.shorten, excess) if excess and self.shorten != "audio" else ("", 0)
        input_ids, labels = self.template.encode(row, self.tokenizer, counts, self.with_answer, cut)
        first, *further = [clip for clip, _ in heard]
        features, waveform = (None, first) if self.store is None else (first, None)
        units = sum(clip.shape[-1] if self.store is None else frames for clip, frames in heard)
        seconds = units * (1 / SAMPLE_RATE if self.store is None else self.store.fingerprint["frame_seconds"])
        return Item(row, input_ids, labels, features, waveform, tuple(further), seconds)

    def _read_clips(self, index: int, row: dict) -> list[tuple[torch.Tensor, int]]:
        """Features [L, T, D] or samples [S] of each clip that an item hears, and its frames."""
        if self._heard is None:
            clips = [(clip, index) for clip in clips_of(row)]
        else:  # as many clips as it has, one after the other along the cycle of all clips
            clips, heard = [], index
            for _ in clips_of(row):
                heard = int(self._heard[heard])
                clips.append((self.rows[heard], heard))
        read = []
        for clip, place in clips:
            if self.store is not None:
                heard = self.store[feature_key(clip)]
            else:
                heard = read_audio(audio_path(self.rows.table_of(place).path, clip), clip["start"], clip["duration"])
            if self.augmentation is not None:
                heard = self.augmentation(heard, f"{row['id']}/{len(read)}")
            frames = heard.shape[1] if self.store is not None else self.encoder_frames(len(heard))
            read.append((torch.zeros_like(heard) if self.audio == "zeros" else heard, frames))
        return read

    def _shorter_clip(self, clip: tuple[torch.Tensor, int], tokens: int) -> tuple[torch.Tensor, int]:
        """The longest beginning of a clip that gives at most so many audio tokens."""
        heard, frames = clip
        if tokens < 1:
            raise DatasetError(
                "dataset: an item of more than max_tokens has too little audio to cut; set shorten: drop"
            )
        if self.store is not None:
            frames = largest(lambda count: self.num_tokens(count) <= tokens, frames)
            return heard[:, :frames], frames
        samples = largest(lambda count: self.num_tokens(self.encoder_frames(count)) <= tokens, len(heard))
        return heard[:samples], self.encoder_frames(samples)

    def prompts(self) -> "AudioTextDataset":
        """The same items, each of which ends before its answer; `lengths` still have room for it."""
        prompts = copy.copy(self)
        prompts.with_answer = False
        return prompts

    def own_clip(self, index: int) -> torch.Tensor:
        """Samples [S] of an item's own clip, as in its file; AudioError where that cannot be read (any more)."""
        row = self.rows[index]
        return read_audio(audio_path(self.rows.table_of(index).path, row), row["start"], row["duration"])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of questions that are drawn and of augmentation; before a DataLoader's workers start."""
        if self.augmentation is not None:
            self.augmentation.epoch = epoch
        if self.rows.questions is not None:
            self.rows.questions.epoch = epoch

    def _require_instructions(self) -> None:
        if self.rows.questions is not None:
            return
        for table, numbers in self.rows.chosen():
            without = numbers[~table.column("questioned")[numbers]]
            if len(without):
                raise DatasetError(
                    f"dataset: {len(without)} rows of {table.path} have no instruction, the first is "
                    f'"{table[int(without[0])]["id"]}"; write one, or set question_files: a list of files with one '
                    "question a line, or [] for the default question."
                )

    def _further_clips(self) -> dict[int, list[dict]]:
        """Clips beyond the first, of the few items that have any."""
        found, first = {}, 0
        for table, numbers in self.rows.chosen():
            for place in np.flatnonzero(table.column("several")[numbers]).tolist():
                found[first + place] = clips_of(table[int(numbers[place])])[1:]
            first += len(numbers)
        return found

    def _further_tokens(self, index: int, clips: list[dict], tokens: np.ndarray) -> Iterator[int]:
        """Audio tokens of an item's clips beyond the first, of which `tokens` [N] has those of all items."""
        heard = index if self._heard is None else int(self._heard[index])
        for clip in clips:
            if self._heard is not None:
                heard = int(self._heard[heard])
                yield int(tokens[heard])
            elif self.store is not None:
                yield self.num_tokens(self.store.frames(feature_key(clip)))
            else:
                path = audio_path(self.rows.table_of(index).path, clip)
                seconds = clip["duration"] or audio_duration(path) - clip["start"]
                yield self.num_tokens(self.encoder_frames(round(seconds * SAMPLE_RATE)))

    def _fit(self, max_tokens: int, shorten: str | None) -> None:
        """See to it that no item is longer, by the rule `shorten`."""
        long = np.flatnonzero(self.lengths > max_tokens)
        if len(long) == 0:
            return
        row, longest = self.rows[int(long[0])], int(self.lengths[long[0]])
        if shorten is None:
            raise DatasetError(
                f'dataset: {len(long)} rows have more than max_tokens {max_tokens}, the first is "{row["id"]}" with '
                f"{longest}; raise it, or say what gives way with shorten: a field of the template, audio or drop."
            )
        ways = {"drop": "they are left out", "audio": "the end of their audio is cut"}
        way = ways.get(shorten, f'the end of their field "{shorten}" is cut')
        log.warning("%d of %d rows have more than %d tokens: %s", len(long), len(self), max_tokens, way)
        if shorten == "drop":
            self.left_out += [self.rows[index]["id"] for index in long.tolist()]
            keep = self.lengths <= max_tokens
            self.rows, self._lengths = self.rows.keep(keep), self._lengths[torch.from_numpy(keep)]
            return
        self.shortened = {index: int(self.lengths[index]) - max_tokens for index in long.tolist()}
        for index, excess in self.shortened.items():
            if shorten != "audio":  # raises where the field is too short for that
                row = self.rows[index]
                counts = [0] * len(clips_of(row))
                self.template.encode(row, self.tokenizer, counts, self.with_answer, (shorten, excess))
            self._lengths[index] = max_tokens

    def _clips(self) -> Iterator[Any]:
        """What names each item's own audio: its key in the store, or (path, start, duration)."""
        for table, numbers in self.rows.chosen():
            for audio, start, duration in table.clips(numbers):
                if self.store is not None:
                    yield feature_key({"audio": audio, "start": start, "duration": duration})
                else:
                    yield table.path.parent / audio, start, duration

    def _stored_frames(self) -> np.ndarray:
        """Frames [N] int64 of each item; leaves out rows rejected at extraction, any other row without is an error."""
        self.rows.require_distinct_files(self.store.folder)
        clips = self._clips()
        portions = iter(lambda: list(islice(clips, _PORTION)), [])
        frames = np.concatenate([np.empty(0, np.int64), *map(self.store.frames_of, portions)])
        missing = np.flatnonzero(frames < 0)
        if len(missing) == 0:
            return frames
        folder = Path(self.store.folder)
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

        return of_each(frames, samples)

    def _audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """Audio tokens [N] int32 of each item's own clip."""
        tokens = of_each(self.num_tokens, frames).astype(np.int32)
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
                return len(self.template.encode(row, self.tokenizer, [0] * len(clips_of(row)), self.with_answer)[0])

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
