"""Tests of windows of batches: the same for any number of processes, split evenly, packed or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.distributed import processes
from audiolm_lite.training.data_loader import WindowLoader
from tests.training.toy import ToyData, losses_of, train

DATA = ToyData(23)


def split(loader, epoch, first, size):
    """Batches of each window, per process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "world_size", lambda: size)
        by_rank = []
        for rank in range(size):
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            by_rank.append(list(loader.batches(epoch, first)))
    return list(zip(*by_rank, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.integers(1, 3), size=st.integers(1, 4), accumulation=st.integers(1, 3), epoch=st.integers(0, 2),
    first=st.integers(0, 2), packed=st.booleans(),
)  # fmt: skip
def test_any_number_of_processes_gets_the_same_windows(ranks, size, accumulation, epoch, first, packed):
    loader = WindowLoader(DATA, 40, accumulation=accumulation, ranks=ranks, shuffle=True, seed=3, packed=packed)
    planned = loader.windows(epoch)
    assert sorted(i for window in planned for batch in window for i in batch) == list(range(len(DATA)))
    windows = split(loader, epoch, first, size)
    assert len(windows) == max(0, len(planned) - first)
    for window, by_rank in zip(planned[first:], windows):
        assert len({len(own) for own in by_rank}) == 1  # all processes make the same number of passes
        ids = [name for own in by_rank for batch in own for name in batch.ids]
        assert sorted(ids) == sorted(f"item-{i}" for batch in window for i in batch)
        expected = sum(label != -100 for batch in window for i in batch for label in DATA.items[i].labels)
        assert sum(int((batch.labels != -100).sum()) for own in by_rank for batch in own) == expected


def test_packed_batches_respect_the_budget_in_tokens():
    padded, packed = (WindowLoader(DATA, 60, packed=packed).windows(0) for packed in (False, True))
    sums = [sum(DATA.lengths[i] for i in batch) for (batch,) in packed]
    assert max(sums) <= 60 and len(packed) <= len(padded)
    (batch,) = next(WindowLoader(DATA, 60, packed=True).batches(0))
    assert batch.attention_mask.all() and batch.input_ids.shape == (1, sums[0])
    assert (batch.position_ids == 0).sum() == len(batch.ids)


def test_training_on_packed_batches(tmp_path):
    brain = train(tmp_path, packing=True, epochs=4, grad_accumulation_factor=1)
    records = losses_of(brain)
    assert records[-1]["loss"] < records[0]["loss"]
    assert sum(record["samples"] for record in records) == 4 * 20
    assert torch.isfinite(torch.tensor(brain.summary["metrics"]["loss"]))
