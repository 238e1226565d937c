"""Batches of audio-text items: length buckets under a token budget, and collation that never changes a result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from audiolm_lite.data.mixing import Mixture
from audiolm_lite.modeling.batch import IGNORE, Batch

# Share by which lengths are blurred before sorting: each epoch gets other batches, at little padding.
BLUR = 0.1


@dataclass
class Item:
    """A prompt and what is heard in it.

    Attributes
    ----------
    row : dict
        The manifest row.
    input_ids, labels : list of int
        Token ids with audio slots, and labels.
    features, waveform : Tensor or None
        Of its clip: features [L, T, D] or samples [S].
    further : tuple of Tensor
        The same of further clips, in reading order.
    seconds : float
        Duration of all clips.
    """

    row: dict
    input_ids: list[int]
    labels: list[int]
    features: Tensor | None = None
    waveform: Tensor | None = None
    further: tuple[Tensor, ...] = ()
    seconds: float = 0.0

    @property
    def clips(self) -> list[Tensor]:
        """Features or samples of all clips."""
        return [self.waveform if self.features is None else self.features, *self.further]


def _pad(tensors: Sequence[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Stack along a new first dimension with zeros at the end of `dim`; also the lengths [A] int64."""
    lengths = torch.tensor([tensor.shape[dim] for tensor in tensors])
    shape = list(tensors[0].shape)
    shape[dim] = int(lengths.max())
    padded = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(padded, tensors):
        row.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return padded, lengths


def collate(items: Sequence[Item], side: str = "right") -> Batch:
    """Pad items into a Batch; `side` is where the text is padded ("left" puts all answers' starts in one column)."""
    if side not in ("left", "right"):
        raise ValueError(f'collate: side is {side!r}, it must be "left" or "right".')
    size = max(len(item.input_ids) for item in items)
    input_ids = torch.zeros(len(items), size, dtype=torch.int64)
    attention_mask = torch.zeros(len(items), size, dtype=torch.bool)
    labels = torch.full((len(items), size), IGNORE, dtype=torch.int64)
    for row, item in enumerate(items):
        length = len(item.input_ids)
        place = slice(0, length) if side == "right" else slice(size - length, size)
        input_ids[row, place] = torch.tensor(item.input_ids)
        attention_mask[row, place] = True
        labels[row, place] = torch.tensor(item.labels)
    features = frames = waveforms = samples = None
    clips = [clip for item in items for clip in item.clips]
    if items[0].features is not None:
        features, frames = _pad(clips, dim=1)
    else:
        waveforms, samples = _pad(clips, dim=0)
    rows = [item.row for item in items]
    ids = [row["id"] for row in rows]
    audio_rows = torch.tensor([row for row, item in enumerate(items) for _ in item.clips])
    batch = Batch(ids, rows, features, frames, waveforms, samples, input_ids, attention_mask, labels)
    return replace(batch, audio_rows=audio_rows, seconds=sum(item.seconds for item in items))


def pack(batch: Batch) -> Batch:
    """Put the items of a padded batch one after the other in a row [1, tokens]; audio stays as it is."""
    mask = batch.attention_mask
    positions = mask.long().cumsum(dim=1) - 1
    return replace(
        batch,
        **{name: getattr(batch, name)[mask][None] for name in ("input_ids", "attention_mask", "labels")},
        position_ids=positions[mask][None],
        audio_rows=torch.zeros_like(batch.samples if batch.frames is None else batch.frames),
        packed=True,
    )


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of items of similar length, the same number of batches on every rank.

    An epoch has every item once, or the items that a mixture gives it. Batches depend on (seed, epoch) alone; those
    that the ranks compute in the same step are neighbours in length, so that no rank waits for another.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each item, audio and text.
    batch_tokens : int
        Largest items x longest item of a batch: tokens with padding; of a packed one, the sum of its items' tokens.
    shuffle : bool
        False: the same batches every epoch, longest first (what does not fit in memory fails at once).
    seed : int
    rank, world_size : int
        This process and the number of processes.
    mixture : Mixture, optional
        Chooses the items of each epoch.
    packed : bool
        Batches are packed (see `pack`).

    Raises
    ------
    ValueError
        An item alone exceeds the budget, or there are too few items to give every rank as many batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_tokens: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
        packed: bool = False,
    ):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if len(self.lengths) == 0:
            raise ValueError("LengthBucketSampler: there are no items.")
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > batch_tokens:
            raise ValueError(
                f"item {longest} has {self.lengths[longest]} tokens, more than batch_tokens {batch_tokens}: "
                "raise batch_tokens or leave the item out of the manifest."
            )
        self.batch_tokens = batch_tokens
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.mixture = mixture
        self.packed = packed
        self._position = (0, 0)  # epoch, first batch
        self._plan: tuple[int, list[list[int]]] = (-1, [])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from its first batch."""
        self._position = (epoch, 0)

    def start(self, batch_index: int) -> None:
        """Begin the current epoch at this batch of this rank: how an interrupted epoch goes on."""
        self._position = (self._position[0], batch_index)

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of this rank in an epoch, as lists of item indices."""
        return [step[self.rank] for step in self.steps(epoch)]

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """Batches of all ranks in an epoch, step by step."""
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
        return steps

    def _split_to_multiple(self, batches: list[list[int]]) -> list[list[int]]:
        """Halve the batches of most items until their number is a multiple of the ranks."""
        missing = -len(batches) % self.world_size
        items = sum(map(len, batches))
        if len(batches) + missing > items:
            raise ValueError(
                f"{items} items in {len(batches)} batches cannot be dealt out evenly to {self.world_size} "
                "processes: use fewer processes or more items."
            )
        for _ in range(missing):
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            batch = batches[largest]
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return batches

    def _current(self) -> list[list[int]]:
        epoch = self._position[0]
        if self._plan[0] != epoch:
            self._plan = (epoch, self.batches(epoch))
        return self._plan[1]

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of the current epoch from the current start."""
        yield from self._current()[self._position[1] :]

    def __len__(self) -> int:
        """Batches of this rank in the current epoch, wherever it starts."""
        return len(self._current())
