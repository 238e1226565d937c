"""Targets of every encoder frame: word, phoneme, beginnings of words, and the labels of the clip."""

import numpy as np
import torch
from torch import Tensor

from data_prep.miniasqa.corpus import STYLES
from data_prep.miniasqa.sentences import vocabulary
from data_prep.miniasqa.sounds import SOUNDS, TREND

IGNORE = -100
AGE_BINS = list(range(20, 80, 5))
WORDS = ["", *vocabulary()]
# Class 0 of every head stands for no label.
CLASSES = {
    "gender": ["", "male", "female"],
    "emotion": ["", *STYLES],
    "age": ["", *map(str, AGE_BINS)],
    "sound": ["", *SOUNDS],
    "fast": ["", "False", "True"],
    "trend": ["", *TREND],
}
ONSET_SECONDS = 0.08


class FrameLabels:
    """Converts a clip's table row to labels [T] of each head.

    Parameters
    ----------
    phonemes : list of str
        Phoneme classes; index 0 is silence.
    frame_seconds : float
        Duration of an encoder frame.
    """

    def __init__(self, phonemes: list[str], frame_seconds: float):
        self.frame_seconds = frame_seconds
        self.word = {w: i for i, w in enumerate(WORDS)}
        self.phoneme = {p: i for i, p in enumerate(phonemes)}
        self.sizes = {"word": len(WORDS), "phoneme": len(phonemes), "onset": 2}
        self.sizes |= {head: len(names) for head, names in CLASSES.items()}

    def __call__(self, row: dict, frames: int) -> dict[str, np.ndarray]:
        labels = {head: np.zeros(frames, np.int64) for head in self.sizes}
        for word, start, end in row["words"]:
            first, last = self._span(start, end, frames)
            labels["word"][first:last] = self.word[word]
            labels["onset"][first : max(first + 1, self._frame(start + ONSET_SECONDS))] = 1
        for phoneme, start, end in row["phonemes"]:
            first, last = self._span(start, end, frames)
            labels["phoneme"][first:last] = self.phoneme.get(phoneme, IGNORE)
        for head, names in CLASSES.items():
            labels[head][:] = names.index(label_of(row, head))
        return labels

    def _frame(self, seconds: float) -> int:
        return int(round(seconds / self.frame_seconds))

    def _span(self, start: float, end: float, frames: int) -> tuple[int, int]:
        first = min(self._frame(start), frames - 1)
        return first, min(frames, max(first + 1, self._frame(end)))

    def batch(self, rows: list[dict], frames: Tensor) -> dict[str, Tensor]:
        """Labels [B, T] of each head, padded with `IGNORE`."""
        longest = int(frames.max())
        out = {head: torch.full((len(rows), longest), IGNORE) for head in self.sizes}
        for i, (row, count) in enumerate(zip(rows, frames.tolist(), strict=True)):
            for head, values in self(row, count).items():
                out[head][i, :count] = torch.from_numpy(values)
        return out


def label_of(row: dict, head: str) -> str:
    """Class of a clip for a clip-level head, or ""."""
    value = row[head]
    if value is None:
        return ""
    if head == "age":
        return str(min(AGE_BINS, key=lambda age: abs(age - value)))
    return str(value)


def collapse(frames: list[int]) -> list[str]:
    """Words of a frame-wise best path: equal neighbouring frames give one word, single frames are dropped."""
    words, run, previous = [], 0, 0
    for value in [*frames, 0]:
        if value == previous:
            run += 1
            continue
        if previous and run > 1:
            words.append(WORDS[previous])
        previous, run = value, 1
    return words
