"""Which batches this process computes in which optimiser step, and reading them.

An optimiser step takes a *window* of batches. Windows depend on the data, the seed, the epoch and the number of
processes that the run was started with, and on nothing else: with more or fewer processes the same windows are dealt
out otherwise, so that a run can go on with another number and take the same steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset

from audiolm_lite.data.batching import Item, LengthBucketSampler, collate, pack
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import IGNORE, Batch


class Feed:
    """Batches of a dataset, window by window.

    Parameters
    ----------
    dataset : Dataset
        Items with their `lengths`, `mixture` (which items an epoch of training has; None: all) and `set_epoch`.
    batch_tokens : int
        Budget of a batch.
    accumulation : int
        Batches of a window for each of the `ranks`.
    ranks : int
        Processes that the windows are planned for.
    shuffle : bool
    seed : int
    limit : int, optional
        Windows of an epoch at most.
    num_workers : int
        Processes that read items; 0: this one.
    pin_memory : bool
    packed : bool
        Batches without padding (see `pack`).
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_tokens: int,
        *,
        accumulation: int = 1,
        ranks: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        limit: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        packed: bool = False,
    ):
        self.dataset, self.seed, self.limit = dataset, seed, limit
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.window = accumulation * ranks
        self.shuffle = shuffle
        self.packed = packed
        self.sampler = LengthBucketSampler(
            dataset.lengths,
            batch_tokens,
            shuffle=shuffle,
            seed=seed,
            world_size=ranks,
            mixture=dataset.mixture if shuffle else None,
            packed=packed,
        )

    def windows(self, epoch: int) -> list[list[list[int]]]:
        """Item indices of the batches of each window of an epoch, of all processes."""
        batches = [batch for step in self.sampler.steps(epoch) for batch in step]
        return [batches[i : i + self.window] for i in range(0, len(batches), self.window)][: self.limit]

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """This process's batches of each window from number `first`, as many as every other process has.

        Where the windows cannot be dealt out evenly, a batch whose turn it is elsewhere makes up the number; nothing
        in it is supervised.
        """
        if self.shuffle:  # validation asks the same questions every time
            self.dataset.set_epoch(epoch)
        rank, size = processes.rank(), processes.world_size()
        windows = self.windows(epoch)[first:]
        shares = [window[rank::size] for window in windows]
        fillers = [-(-len(window) // size) - len(share) for window, share in zip(windows, shares)]
        loader = DataLoader(
            self.dataset,
            batch_sampler=[
                batch
                for window, share, count in zip(windows, shares, fillers)
                for batch in [*share, *window[:1] * count]
            ],
            collate_fn=_collate_packed if self.packed else collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # its own generator: making the loader must not draw from the one that dropout uses, or a resumed
            # epoch would go on with other masks
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )
        batches = iter(loader)
        for share, count in zip(shares, fillers):
            yield [next(batches) for _ in share] + [_without_answers(next(batches)) for _ in range(count)]


def _collate_packed(items: Sequence[Item]) -> Batch:
    return pack(collate(items))


def _without_answers(batch: Batch) -> Batch:
    return replace(batch, ids=[], labels=torch.full_like(batch.labels, IGNORE))
