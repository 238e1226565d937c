"""Loads the batches that this process computes for each optimiser step.

An optimiser step takes a *window* of batches. The windows depend on the data, the seed, the epoch and the number of
processes that the run was started with. Another number of processes splits the same windows differently, so that a run
can continue with it and take the same steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from audiolm_lite.data.batching import Item, LengthBucketSampler, collate, pack
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import IGNORE, Batch


class WindowLoader:
    """Batches of a dataset, window by window.

    Parameters
    ----------
    dataset : AudioTextDataset
        Items, with `lengths`, `mixture` (which items an epoch of training has; None: all) and `set_epoch`.
    batch_tokens : int
        Most audio and text tokens of a batch, padding included.
    accumulation : int
        Batches of a window per process of `ranks`.
    ranks : int
        Number of processes for which the windows are planned.
    shuffle : bool
        Whether this is training: shuffled batches, and questions that change with the epoch.
    seed : int
    limit : int, optional
        Most windows of an epoch.
    num_workers : int
        Processes that read items; 0: this one.
    pin_memory : bool
    packed : bool
        Batches without padding (see `pack`).
    """

    def __init__(
        self,
        dataset: AudioTextDataset,
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
            name=lambda index: dataset.rows[index]["id"],
        )

    def windows(self, epoch: int) -> list[list[list[int]]]:
        """Item indices of the batches of each window of an epoch, for all processes."""
        batches = self.sampler.batches(epoch)
        return [batches[i : i + self.window] for i in range(0, len(batches), self.window)][: self.limit]

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """Load this process's batches of each window from number `first` on.

        All processes get the same number of batches. Where a window cannot be split evenly, some get one more batch in
        which nothing is supervised.
        """
        if self.shuffle:  # validation uses the same questions in each epoch
            self.dataset.set_epoch(epoch)
        rank, size = processes.rank(), processes.world_size()
        windows = self.windows(epoch)[first:]
        shards = [window[rank::size] for window in windows]
        fillers = [-(-len(window) // size) - len(shard) for window, shard in zip(windows, shards)]
        loader = DataLoader(
            self.dataset,
            batch_sampler=[
                batch
                for window, shard, count in zip(windows, shards, fillers)
                for batch in [*shard, *window[:1] * count]
            ],
            collate_fn=_collate_packed if self.packed else collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # A generator of its own: creating the loader must not draw from the one that dropout uses. Otherwise a
            # resumed epoch would continue with other masks.
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )
        batches = iter(loader)
        for shard, count in zip(shards, fillers):
            yield [next(batches) for _ in shard] + [_without_answers(next(batches)) for _ in range(count)]


def raise_in_all_processes(windows: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Iterate in all processes at once; an exception in one of them, such as an unreadable item, ends all.

    Examples
    --------
    >>> item = Item({"id": "a"}, [5, 6], [IGNORE, 6], features=torch.zeros(1, 1, 8))
    >>> windows = iter([[collate([item])], [collate([item, item])]])
    >>> [[batch.ids for batch in window] for window in raise_in_all_processes(windows)]
    [[['a']], [['a', 'a']]]
    """
    while True:
        window, error = None, None
        try:
            window = next(windows, None)
        except Exception as raised:
            error = raised
        processes.any_rank(error)
        if window is None:
            return
        yield window


def _collate_packed(items: Sequence[Item]) -> Batch:
    return pack(collate(items))


def _without_answers(batch: Batch) -> Batch:
    return replace(batch, ids=[], labels=torch.full_like(batch.labels, IGNORE))
