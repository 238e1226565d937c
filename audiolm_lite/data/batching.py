"""Batches of audio-text items: length buckets with a token budget, and padding that never changes a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_lite.audio.level import level_dbfs
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.mixing import Mixture
from audiolm_lite.modeling.batch import IGNORE, Batch

# Lengths are multiplied by up to 1 + BLUR before sorting: each epoch then has other batches, with little padding.
BLUR = 0.1


@dataclass
class Item:
    """A prompt and its clips.

    Attributes
    ----------
    row : dict
        The manifest row.
    input_ids, labels : list of int
        Token ids with audio slots, and labels.
    features, waveform : Tensor or None
        The first clip, as features [L, T, D] or as samples [S].
    further : tuple of Tensor
        The other clips, in reading order.
    seconds : float
        Duration of all clips.
    without_audio : bool
        The clips only have their length: they are zeros, and so are their features (see `controls`).
    level : float or None
        Level of the loudest clip (see `audio.level`), if features are all that is left of the audio; None: unknown.
    """

    row: dict[str, Any]
    input_ids: list[int]
    labels: list[int]
    features: Tensor | None = None
    waveform: Tensor | None = None
    further: tuple[Tensor, ...] = ()
    seconds: float = 0.0
    without_audio: bool = False
    level: float | None = None

    @property
    def loudest(self) -> float | None:
        """Level of the loudest clip in dB relative to full scale; None where it is not known, or there is no audio."""
        if self.without_audio or self.features is not None:
            return None if self.without_audio else self.level
        return max(map(level_dbfs, self.clips), default=None)

    @property
    def clips(self) -> list[Tensor]:
        """Features or samples of all clips, in reading order."""
        return [clip for clip in (self.features, self.waveform, *self.further) if clip is not None]


def _pad(tensors: Sequence[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Stack along a new first dimension with zeros at the end of `dim`; also return the lengths [A] int64."""
    lengths = torch.tensor([tensor.shape[dim] for tensor in tensors])
    shape = list(tensors[0].shape)
    shape[dim] = int(lengths.max())
    padded = tensors[0].new_zeros(len(tensors), *shape)
    for target, tensor in zip(padded, tensors):
        target.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return padded, lengths


def collate(items: Sequence[Item], side: str = "right") -> Batch:
    """Pad items into a batch.

    Parameters
    ----------
    items : sequence of Item
        All with features, or all with waveforms; all with audio, or all without.
    side : str
        Side on which text is padded: "right", or "left", so that all answers start in the same column.

    Returns
    -------
    Batch
        With audio padded at its end.

    Raises
    ------
    ValueError
        Another side.

    Examples
    --------
    >>> items = [Item({"id": n}, [5] * n, [5] * n, waveform=torch.ones(n)) for n in (1, 2)]
    >>> batch = collate(items, side="left")
    >>> batch.attention_mask.tolist(), batch.samples.tolist()
    ([[False, True], [True, True]], [1, 2])
    """
    if side not in ("left", "right"):
        raise ValueError(f'collate: side is {side!r}, it must be "left" or "right".')
    size = max(len(item.input_ids) for item in items)
    input_ids = torch.zeros(len(items), size, dtype=torch.int64)
    attention_mask = torch.zeros(len(items), size, dtype=torch.bool)
    labels = torch.full((len(items), size), IGNORE, dtype=torch.int64)
    for index, item in enumerate(items):
        length = len(item.input_ids)
        columns = slice(0, length) if side == "right" else slice(size - length, size)
        input_ids[index, columns] = torch.tensor(item.input_ids)
        attention_mask[index, columns] = True
        labels[index, columns] = torch.tensor(item.labels)
    features = frames = waveforms = samples = None
    clips = [clip for item in items for clip in item.clips]
    if items[0].features is not None:
        features, frames = _pad(clips, dim=1)
    else:
        waveforms, samples = _pad(clips, dim=0)
    rows = [item.row for item in items]
    ids = [row["id"] for row in rows]
    audio_rows = torch.tensor([index for index, item in enumerate(items) for _ in item.clips])
    batch = Batch(ids, rows, features, frames, waveforms, samples, input_ids, attention_mask, labels)
    seconds = sum(item.seconds for item in items)
    return replace(batch, audio_rows=audio_rows, seconds=seconds, without_audio=items[0].without_audio)


def pack(batch: Batch) -> Batch:
    """Concatenate the items of a padded batch in one row [1, tokens] without padding; audio stays as it is.

    Examples
    --------
    >>> items = [Item({"id": n}, [n] * n, [n] * n, waveform=torch.ones(n)) for n in (1, 2)]
    >>> packed = pack(collate(items))
    >>> packed.input_ids.tolist(), packed.position_ids.tolist()
    ([[1, 2, 2]], [[0, 0, 1]])
    """
    mask = batch.attention_mask
    positions = mask.long().cumsum(dim=1) - 1
    clip_lengths = batch.samples if batch.frames is None else batch.frames
    assert clip_lengths is not None  # a batch has features or waveforms
    return replace(
        batch,
        **{name: getattr(batch, name)[mask][None] for name in ("input_ids", "attention_mask", "labels")},
        position_ids=positions[mask][None],
        audio_rows=torch.zeros_like(clip_lengths),
        packed=True,
    )


class LengthBucketSampler:
    """Divide the items of an epoch into batches of items of similar length.

    An epoch has every item once, or the items that a mixture gives it. Batches depend on seed and epoch only. Their
    number is a multiple of the ranks; the batches that ranks compute in the same step are neighbours in length, so that
    no rank waits for another.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each item, audio and text.
    batch_tokens : int
        Most tokens of a batch with padding, that is items x longest item; of a packed batch, the sum of its items'
        tokens.
    shuffle : bool
        False: the same batches in every epoch, longest first, so that a batch too large for the memory fails at once.
    seed : int
        Seed of the order.
    world_size : int
        Number of ranks.
    mixture : Mixture, optional
        Chooses the items of each epoch.
    packed : bool
        Batches are packed (see `pack`).
    name : callable
        Name of an item for messages, from its index: the id of its row.

    Raises
    ------
    ValueError
        An item alone exceeds the budget, or there are no items.

    Examples
    --------
    >>> LengthBucketSampler([4, 9, 5, 8], batch_tokens=18, shuffle=False).batches(epoch=0)
    [[1, 3], [2, 0]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_tokens: int,
        shuffle: bool = True,
        seed: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
        packed: bool = False,
        name: Callable[[int], object] = int,
    ):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if len(self.lengths) == 0:
            raise ValueError("LengthBucketSampler: there are no items.")
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > batch_tokens:
            raise ConfigError(
                f"item {name(longest)} has {self.lengths[longest]} tokens, more than batch_tokens {batch_tokens}: "
                "raise batch_tokens or leave the item out of the manifest."
            )
        self.batch_tokens, self.world_size, self.packed = batch_tokens, world_size, packed
        self.shuffle, self.seed, self.mixture = shuffle, seed, mixture

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch as lists of item indices; `world_size` consecutive ones belong to one step.

        Raises
        ------
        ValueError
            There are too few items to give every rank as many batches.
        """
        rng = np.random.default_rng((self.seed, epoch if self.shuffle else 0))
        items = np.arange(len(self.lengths)) if self.mixture is None else self.mixture.epoch(epoch)
        lengths = self.lengths[items]
        blurred = lengths * (1 + BLUR * rng.random(len(lengths))) if self.shuffle else lengths
        order = np.argsort(-blurred, kind="stable")
        batches: list[list[int]] = []
        longest = total = 0
        for index, length in zip(items[order].tolist(), lengths[order].tolist()):
            longest, total = max(longest, length), total + length
            size = total if self.packed else longest * (len(batches[-1]) + 1 if batches else 1)
            if not batches or size > self.batch_tokens:
                batches.append([])
                longest = total = length
            batches[-1].append(index)
        batches = self._split_to_multiple(batches)
        steps = [batches[i : i + self.world_size] for i in range(0, len(batches), self.world_size)]
        if self.shuffle:
            steps = [steps[i] for i in rng.permutation(len(steps))]
        return [batch for step in steps for batch in step]

    def _split_to_multiple(self, batches: list[list[int]]) -> list[list[int]]:
        """Halve the batches with most items until their number is a multiple of the ranks."""
        missing = -len(batches) % self.world_size
        items = sum(map(len, batches))
        if len(batches) + missing > items:
            raise ValueError(
                f"{items} items in {len(batches)} batches cannot be split evenly across {self.world_size} "
                "processes: use fewer processes or more items."
            )
        for _ in range(missing):
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return batches
