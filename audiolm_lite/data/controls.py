"""Controls without the audio of the question: which clip an item gets instead of its own.

They measure what a model answers from the text alone. "shuffled" gives each clip the audio of another clip. "zeros" is
the control without audio: the adapter receives encoder features that are all zero, as many frames as another clip has,
because the length of a clip reveals the length of its transcript. This is not the encoder's output for silence, which
depends on the encoder, and it is the same whether features are stored or computed.

A transcript of the clip in the prompt would reveal what was said. So "shuffled" also exchanges the field `transcript`
of the rows, and "zeros" empties it. No other field is changed.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from audiolm_lite.data.selected_rows import DatasetError

CONTROLS = ("normal", "zeros", "shuffled")
# What the model receives under each control, as metrics.json records it.
DEFINITIONS = {
    "normal": "the features of the item's own clips",
    "zeros": "features that are all zero, in the number of frames of another clip; a transcript in the prompt is empty",
    "shuffled": "the features of another clip, and its transcript if the prompt has one",
}
# Field of a row, and slot of a prompt, with what a speech recogniser understood.
TRANSCRIPT = "transcript"


def with_transcript_of(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row with the transcript of another row; an empty one if that has none or is None.

    Examples
    --------
    >>> with_transcript_of({"id": "1", "transcript": "good morning"}, {"id": "2", "transcript": "no"})
    {'id': '1', 'transcript': 'no'}
    >>> with_transcript_of({"id": "1", "transcript": "good morning"}, None)
    {'id': '1', 'transcript': ''}
    """
    return {**row, TRANSCRIPT: (other or {}).get(TRANSCRIPT) or ""}


class ClipExchange:
    """Give each item the clip of another item: one cycle through all clips in random order.

    Items with the same clip get the same other clip.

    Parameters
    ----------
    clips : iterable
        For each item a hashable value that is equal for items of the same clip.
    seed : int
        Seed of the order.

    Raises
    ------
    DatasetError
        There is only one clip.

    Examples
    --------
    >>> exchange = ClipExchange(["dog.wav", "rain.wav", "dog.wav"], seed=0)
    >>> exchange.first.tolist()
    [1, 0, 1]
    >>> exchange.items(0, count=2)
    [1, 0]
    """

    def __init__(self, clips: Iterable[Hashable], seed: int):
        numbers: dict[Hashable, int] = {}
        clip_of = np.array([numbers.setdefault(clip, len(numbers)) for clip in clips])  # [N] clip number of each item
        if len(numbers) < 2:
            raise DatasetError('dataset: the controls "zeros" and "shuffled" need at least two clips.')
        first_item = np.unique(clip_of, return_index=True)[1]  # clip number -> its first item
        order = np.random.default_rng(seed).permutation(len(numbers))
        next_clip = np.empty_like(order)
        next_clip[order] = np.roll(order, -1)
        # A tensor, which spawned workers share (see SelectedRows).
        self._next = torch.from_numpy(first_item[next_clip[clip_of]].astype(np.int32))

    @property
    def first(self) -> np.ndarray:
        """For each item, the item [N] int32 whose clip it gets as its first."""
        return self._next.numpy()

    def items(self, index: int, count: int) -> list[int]:
        """Return the items whose clips an item gets in place of its own `count` clips: the next ones of the cycle."""
        items = []
        for _ in range(count):
            index = int(self._next[index])
            items.append(index)
        return items
