"""Loads the batches that this process computes for each optimiser step.

An optimiser step takes a *window* of batches. The windows depend on the data, the seed, the epoch and the number of
processes that the run was started with. Another number of processes splits the same windows differently, so that a run
can continue with it and take the same steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from audiolm_lite.data.batching import Item, LengthBucketSampler, collate, pack
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.readable import ReadableItems, Unreadable
from audiolm_lite.data.selected_rows import DatasetError
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import IGNORE, Batch
from audiolm_lite.training.bad_audio import BadAudio


class _Loaded(NamedTuple):
    """A batch of the items that could be read, None without any, and the others."""

    batch: Batch | None
    unreadable: list[Unreadable]


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

    Attributes
    ----------
    unreadable : list of Unreadable
        Items whose audio could not be read since the list was last emptied. Their batches are without them; in place of
        a batch that has no other, there is one in which nothing is supervised, since all processes compute as many.
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
        self.unreadable: list[Unreadable] = []
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

    def batches(
        self, epoch: int, first: int = 0, known: Mapping[int, Unreadable] | None = None
    ) -> Iterator[list[Batch]]:
        """Load this process's batches of each window from number `first` on.

        All processes get the same number of batches. Where a window cannot be split evenly, some get one more batch in
        which nothing is supervised. `known` has items that are set aside: they are not tried, and not in `unreadable`.
        """
        if self.shuffle:  # validation uses the same questions in each epoch
            self.dataset.set_epoch(epoch)
        rank, size = processes.rank(), processes.world_size()
        windows = self.windows(epoch)[first:]
        shards = [window[rank::size] for window in windows]
        fillers = [-(-len(window) // size) - len(shard) for window, shard in zip(windows, shards)]
        readable = ReadableItems(self.dataset, known)
        loader = DataLoader(
            readable,
            batch_sampler=[
                batch
                for window, shard, count in zip(windows, shards, fillers)
                for batch in [*shard, *window[:1] * count]
            ],
            collate_fn=partial(_collate, packed=self.packed),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # A generator of its own: creating the loader must not draw from the one that dropout uses. Otherwise a
            # resumed epoch would continue with other masks.
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )
        batches = (self._supervised(loaded, readable) for loaded in loader)
        for shard, count in zip(shards, fillers):
            yield [next(batches) for _ in shard] + [_without_answers(next(batches)) for _ in range(count)]

    def _supervised(self, loaded: _Loaded, readable: ReadableItems) -> Batch:
        """Return the loaded batch or, if none of its items can be read, one of another item without supervision."""
        self.unreadable += [row for row in loaded.unreadable if row.item not in readable.known]
        if loaded.batch is not None:
            return loaded.batch
        items = (readable[index] for index in range(len(readable)))
        item = next((item for item in items if isinstance(item, Item)), None)
        if item is None:
            raise DatasetError(f"dataset: no audio can be read; {loaded.unreadable[0].reason}")
        batch = collate([item])
        return _without_answers(pack(batch) if self.packed else batch)


def read_in_all_processes(
    loader: WindowLoader, epoch: int, first: int = 0, *, where: str, bad_audio: BadAudio
) -> Iterator[list[Batch]]:
    """Load the windows of an epoch in all processes at once.

    An exception in one process ends all. Items that one process cannot read are set aside in all.

    Parameters
    ----------
    loader : WindowLoader
        The loader of this process.
    epoch, first : int
        As in `WindowLoader.batches`.
    where : str
        Name of the dataset in `bad_audio`.
    bad_audio : BadAudio
        Rows that are set aside.

    Raises
    ------
    BadAudioError
        In all processes: too many files cannot be read.
    """
    windows = loader.batches(epoch, first, bad_audio.known(where))
    while True:
        window, error = None, None
        try:
            window = next(windows, None)
        except Exception as raised:
            error = raised
        if processes.any_rank(error, unreadable=bool(loader.unreadable))["unreadable"]:
            bad_audio.share(where, loader.unreadable)
            loader.unreadable = []
        if window is None:
            return
        yield window


def _collate(items: Sequence[Item | Unreadable], packed: bool) -> _Loaded:
    readable = [item for item in items if isinstance(item, Item)]
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    if not readable:
        return _Loaded(None, unreadable)
    batch = collate(readable)
    return _Loaded(pack(batch) if packed else batch, unreadable)


def _without_answers(batch: Batch) -> Batch:
    return replace(batch, ids=[], labels=torch.full_like(batch.labels, IGNORE))
