"""Rows of manifests as items: audio or its stored features, and a tokenised prompt."""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.level import level_dbfs
from audiolm_lite.audio.reading import read_audio
from audiolm_lite.config.errors import UserError
from audiolm_lite.data.augmentation import Augmentation
from audiolm_lite.data.batching import Item
from audiolm_lite.data.clip_sources import ClipSource
from audiolm_lite.data.controls import CONTROLS, TRANSCRIPT, ClipExchange, with_transcript_of
from audiolm_lite.data.length_limit import NO_LIMIT, LengthLimit, require_audio_to_cut, truncate_clip
from audiolm_lite.data.lengths import map_distinct
from audiolm_lite.data.manifest import audio_path
from audiolm_lite.data.mixing import Mixture
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import DatasetError, SelectedRows
from audiolm_lite.features.keys import clips_of
from audiolm_lite.features.store import FeatureStoreError

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # a kind of `LeftOut`


class LeftOut(NamedTuple):
    """A row that a dataset does not use.

    Attributes
    ----------
    id, task : str
        Fields of the row.
    kind : str
        "no features", "unreadable", "length" (one that the encoder does not take), "too short" or "too long".
    reason : str
        What is wrong, in words.
    """

    id: str
    task: str
    kind: str
    reason: str


class AudioTextDataset(Dataset[Item]):
    """One item per row, with lengths that are known before any audio is read.

    The constructor finds everything that can be wrong with a row except unreadable audio. Rows stay in their manifests
    and are read one by one, so neither this process nor DataLoader workers hold them in memory.

    Parameters
    ----------
    rows : SelectedRows
        The rows, see `select_rows`.
    source : FeatureSource or WaveformSource
        Reads the clips. Rows whose audio the feature extraction rejected are left out, with a warning.
    prompt : PromptBuilder
        Turns rows into token ids.
    control : str
        "normal"; "zeros" or "shuffled" replace the audio and its transcript in the prompt, see `controls`.
    seed : int
        Seed of the order in which a control exchanges clips.
    limit : LengthLimit
        Most tokens of an item, and how longer items are shortened.
    augmentation : Augmentation, optional
        Changes each clip that is read, and with its length the prompt; `lengths` remain those of the unchanged clips.
    leave_out : bool or str
        True: rows whose audio cannot be used (unreadable, too long for the encoder, too short for one audio token) are
        left out. "unreadable": only those whose file cannot be read. Otherwise, the first of them is an error.

    Attributes
    ----------
    rows : SelectedRows
        The rows of the items, in order.
    omitted : list of LeftOut
        Rows without features, those dropped as too long and, with `leave_out`, those whose audio cannot be used.
    lengths : ndarray
        Tokens [N] int32 of each item, audio and text. Without stored features, the audio tokens follow from the
        duration. A row that draws its question counts with the longest one.
    mixture : Mixture or None
        Items of each epoch if manifests are mixed, see `mix`; None: each item once.

    Raises
    ------
    DatasetError
        No row is left, features are missing, a clip is too short for one audio token, or a row is too long.
    PromptError
        A row lacks a field of the prompt, or the field to truncate is too short.
    """

    def __init__(
        self,
        rows: SelectedRows,
        source: ClipSource,
        prompt: PromptBuilder,
        *,
        control: str = "normal",
        seed: int = 0,
        limit: LengthLimit = NO_LIMIT,
        augmentation: Augmentation | None = None,
        leave_out: bool | str = False,
    ):
        if control not in CONTROLS:
            raise DatasetError(f'dataset: control is {control!r}, it must be "normal", "zeros" or "shuffled".')
        if limit.shorten is not None and control != "normal":
            raise DatasetError(f"dataset: shorten cannot be combined with the control {control!r}; remove shorten.")
        if limit.shorten not in (None, "audio", "drop"):
            prompt.require_field(limit.shorten)
        self.source, self.prompt, self.limit, self.augmentation = source, prompt, limit, augmentation
        self.control = control
        self.mixture: Mixture | None = None
        self.omitted: list[LeftOut] = []
        self.rows, frames = self._with_audio(rows, leave_out)
        tokens = self._audio_tokens(frames)
        self._exchange = None if control == "normal" else ClipExchange(self._identities(), seed)
        lengths = self._text_tokens() + (tokens if self._exchange is None else tokens[self._exchange.first])
        for index, clips in _further_clips(self.rows).items():
            lengths[index] += sum(self._further_tokens(index, clips, tokens))
        # A tensor, which spawned workers share (see SelectedRows).
        self._lengths = torch.from_numpy(lengths)
        self._excess = self._apply_limit()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens [N] int32 of each item."""
        return self._lengths.numpy()

    @property
    def left_out(self) -> list[str]:
        """Ids of the rows that are left out."""
        return [row.id for row in self.omitted]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """Read one item.

        Raises
        ------
        AudioError
            Its audio cannot be read.
        DatasetError
            Its audio has another length than its manifest says, which the encoder does not take. Both messages name
            the row.
        """
        row = self.rows[index]
        try:
            return self._item(index, row)
        except AudioError as error:
            raise AudioError(error.path, f'{error.reason} (row "{row["id"]}")') from error
        except UserError:
            raise
        except ValueError as error:
            raise DatasetError(f'row "{row["id"]}", {row["audio"]}: {error}') from error

    def _item(self, index: int, row: dict[str, Any]) -> Item:
        excess = self._excess.get(index, 0)
        clips = self._read_clips(index, row)
        if self._exchange is not None and TRANSCRIPT in self.prompt.template.slots:
            other = None if self.control == "zeros" else self.rows[self._exchange.items(index, 1)[0]]
            row = with_transcript_of(row, other)
        counts = [self._tokens_of(clip) for clip in clips]
        if excess and self.limit.shorten == "audio":
            clips[-1] = truncate_clip(clips[-1], counts[-1] - excess, self.source, self.prompt.num_tokens)
            counts[-1] = self._tokens_of(clips[-1])
        input_ids, labels = self.prompt.encode(row, counts, self.limit.field_to_cut(excess))
        units = sum(clip.shape[self.source.time_dim] for clip in clips)
        first, *further = clips
        item = Item(row, input_ids, labels, further=tuple(further), seconds=units * self.source.unit_seconds)
        own: dict[str, Any] = {self.source.kind: first, "without_audio": self.control == "zeros"}
        return replace(item, **own)

    def without_answers(self) -> "AudioTextDataset":
        """Return the same items, which end before their answers; `lengths` still include the answers."""
        prompts = copy.copy(self)
        prompts.prompt = replace(self.prompt, with_answer=False)
        return prompts

    def own_clip(self, index: int) -> Tensor:
        """Read the samples [S] of an item's own first clip; raises AudioError if its file cannot be read any more."""
        row = self.rows[index]
        path, channel = audio_path(self.rows.manifest_of(index), row), row.get("channel")
        return read_audio(path, row["start"], row["duration"], channel=channel)

    def level(self, index: int) -> float | None:
        """Level of the loudest clip that an item has, from its audio files; None if they cannot be read, or no clip is.

        For stored features, which do not have it.
        """
        if self.control == "zeros":
            return None
        try:
            clips = self._clip_files(index, self.rows[index])
            return max(level_dbfs(read_audio(audio_path(m, c), c["start"], c["duration"])) for m, c in clips)
        except AudioError:
            return None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of drawn questions and of augmentation; to be called before a DataLoader's workers start."""
        if self.augmentation is not None:
            self.augmentation.epoch = epoch
        if self.rows.questions is not None:
            self.rows.questions.epoch = epoch

    def mix(self, weights: Sequence[float], seed: int = 0) -> None:
        """Mix the manifests: set `mixture`, by which an epoch takes items of each manifest in proportion to `weights`.

        Raises
        ------
        ValueError
            A weight is not positive, there are not as many weights as manifests, or a manifest has no item.
        """
        self.mixture = Mixture(self.rows.sizes, weights, seed)
        names = [str(table.path) for table in self.rows.tables]
        log.info("An epoch has %s", self.mixture.describe(names, self.lengths))

    def _text_tokens(self) -> np.ndarray:
        """Text tokens [N] int32 of each item, with the transcript that it gets."""
        tokens = self.prompt.text_tokens(self.rows)
        if self._exchange is None or TRANSCRIPT not in self.prompt.template.slots:
            return tokens
        without = self.prompt.text_tokens(self.rows, blank=TRANSCRIPT)
        return without if self.control == "zeros" else without + (tokens - without)[self._exchange.first]

    def _read_clips(self, index: int, row: dict[str, Any]) -> list[Tensor]:
        """Read the clips of an item, features [L, T, D] or samples [S], after control and augmentation."""
        read = []
        for number, (manifest, clip) in enumerate(self._clip_files(index, row)):
            if self.control == "zeros":
                read.append(self.source.zeros(manifest, clip))
                continue
            tensor = self.source.read(manifest, clip)
            if self.augmentation is not None:
                tensor = self.augmentation(tensor, f"{row['id']}/{number}")
            read.append(tensor)
        return read

    def _clip_files(self, index: int, row: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
        """Manifest and entries of each clip of an item, after control."""
        clips = [(self.rows.manifest_of(index), clip) for clip in clips_of(row)]
        if self._exchange is None:
            return clips
        others = self._exchange.items(index, len(clips))
        return [(self.rows.manifest_of(other), self.rows[other]) for other in others]

    def _tokens_of(self, clip: Tensor) -> int:
        """Audio tokens of a clip that has been read."""
        return self.prompt.num_tokens(self.source.frames(clip.shape[self.source.time_dim]))

    def _with_audio(self, rows: SelectedRows, leave_out: bool | str) -> tuple[SelectedRows, np.ndarray]:
        """Rows without those whose audio cannot be used, and the frames [N] int64 of their first clips."""
        faults: dict[int, tuple[str, str]] = {}
        stored = self.source.kind == "features"  # the extraction has decided which clips are left out
        audio_only = leave_out == UNREADABLE
        frames = self.source.frames_of_rows(rows, faults if stored or leave_out else None, audio_only)
        if audio_only:
            further = {} if stored else self._faults_of_further_clips(rows)
            faults |= {index: fault for index, fault in further.items() if fault[0] == UNREADABLE}
        elif leave_out:
            tokens = map_distinct(lambda count: self.prompt.num_tokens(count) if count >= 0 else 1, frames)
            for index in np.flatnonzero(tokens < 1).tolist():
                faults[index] = ("too short", f"{frames[index]} frames are too few for one audio token")
            faults |= self._faults_of_further_clips(rows)
        if not faults:
            return rows, frames
        for index in sorted(faults):
            row = rows[index]
            self.omitted.append(LeftOut(row["id"], row["task"], *faults[index]))
        if len(faults) == len(frames):
            cause = "the feature extraction rejected the audio" if stored else "nothing can use the audio"
            raise DatasetError(
                f"dataset: no row is left, since {cause} of all {len(frames)} rows; the first: {self.omitted[0].reason}"
            )
        keep = np.ones(len(rows), dtype=bool)
        keep[list(faults)] = False
        if leave_out and not stored:
            log.warning("%d of %d rows are left out, the first: %s", len(faults), len(frames), self.omitted[0].reason)
        return rows.keep(keep), frames[keep]

    def _audio_tokens(self, frames: np.ndarray) -> np.ndarray:
        """Audio tokens [N] int32 of each item's own first clip."""
        tokens = map_distinct(self.prompt.num_tokens, frames).astype(np.int32)
        if (tokens < 1).any():
            index = int(np.argmax(tokens < 1))
            row = self.rows[index]
            raise DatasetError(
                f'dataset: row "{row["id"]}": audio {row["audio"]} ({frames[index]} frames) is too short for one audio '
                "token; drop the row or use a smaller stride or pooling."
            )
        return tokens

    def _identities(self) -> Iterator[Any]:
        return (self.source.identity(manifest, clip) for manifest, clip in self.rows.clips())

    def _faults_of_further_clips(self, rows: SelectedRows) -> dict[int, tuple[str, str]]:
        """`LeftOut.kind` and `LeftOut.reason` of the rows with an unusable clip after the first, by their indices."""
        faults = {}
        for index, clips in _further_clips(rows).items():
            for clip in clips:
                try:
                    self.source.frames(self.source.length(rows.manifest_of(index), clip))
                except (FeatureStoreError, AudioError) as error:
                    faults[index] = ("no features" if self.source.kind == "features" else UNREADABLE, str(error))
                except ValueError as error:
                    faults[index] = ("length", str(error))
        return faults

    def _further_tokens(self, index: int, clips: list[dict[str, Any]], tokens: np.ndarray) -> Iterator[int]:
        """Audio tokens of an item's clips after the first; `tokens` [N] are those of all items' first clips."""
        if self._exchange is not None:
            for other in self._exchange.items(index, 1 + len(clips))[1:]:
                yield int(tokens[other])
            return
        for clip in clips:
            length = self.source.length(self.rows.manifest_of(index), clip)
            yield self.prompt.num_tokens(self.source.frames(length))

    def _apply_limit(self) -> dict[int, int]:
        """Leave out the items that are too long, or note by how many tokens each will be truncated."""
        excess = self.limit.excess(self.rows, self.lengths)
        if not excess:
            return {}
        if self.limit.shorten == "drop":
            for index, tokens in excess.items():
                row, reason = self.rows[index], f"{tokens} tokens more than max_tokens {self.limit.max_tokens}"
                self.omitted.append(LeftOut(row["id"], row["task"], "too long", reason))
            keep = np.ones(len(self), dtype=bool)
            keep[list(excess)] = False
            self.rows, self._lengths = self.rows.keep(keep), self._lengths[torch.from_numpy(keep)]
            return {}
        for index, tokens in excess.items():
            row = self.rows[index]
            if self.limit.shorten == "audio":
                clip = clips_of(row)[-1]
                length = self.source.length(self.rows.manifest_of(index), clip)
                require_audio_to_cut(row["id"], length, tokens, self.source, self.prompt.num_tokens)
            else:
                if self.limit.shorten == "instruction" and self.rows.draws(index):
                    raise DatasetError(
                        f'dataset: row "{row["id"]}" is too long by {tokens} tokens and draws its question, whose '
                        "length differs; set shorten to another field, audio or drop."
                    )
                self.prompt.without_audio(row, self.limit.field_to_cut(tokens))  # too short: PromptError
            self._lengths[index] -= tokens
        return excess


def _further_clips(rows: SelectedRows) -> dict[int, list[dict[str, Any]]]:
    """Clips after the first, for the few rows that have any."""
    further, first = {}, 0
    for table, numbers in rows.by_table():
        for position in np.flatnonzero(table.column("several")[numbers]).tolist():
            further[first + position] = clips_of(table[int(numbers[position])])[1:]
        first += len(numbers)
    return further
