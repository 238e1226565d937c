"""Length buckets and collation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.data.batching import Item, LengthBucketSampler, collate
from audiolm_lite.modeling.batch import IGNORE

all_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@settings(max_examples=100, deadline=None)
@given(
    lengths=all_lengths,
    slack=st.integers(0, 300),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_item_once_within_the_budget_on_equal_ranks(lengths, slack, world_size, shuffle, epoch):
    budget = max(lengths) + slack
    try:
        batches = LengthBucketSampler(lengths, budget, shuffle, world_size=world_size).batches(epoch)
    except ValueError as error:
        assert "cannot be split evenly" in str(error) and world_size > 1
        return
    assert len(batches) % world_size == 0
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch and len(batch) * max(lengths[item] for item in batch) <= budget


@settings(max_examples=30, deadline=None)
@given(lengths=all_lengths, seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_depends_on_seed_and_epoch_only(lengths, seed, epoch):
    """Not on earlier calls, so an interrupted epoch can be resumed at any batch."""
    sampler = LengthBucketSampler(lengths, 120, seed=seed)
    expected = sampler.batches(epoch)
    resumed = LengthBucketSampler(lengths, 120, seed=seed)
    assert resumed.batches(epoch + 1) == sampler.batches(epoch + 1)
    assert resumed.batches(epoch) == expected


def test_epochs_and_seeds_differ_in_order_and_in_batches_only_when_shuffled():
    lengths = [20 + i % 17 for i in range(200)]

    def batches(**options):
        return [LengthBucketSampler(lengths, 200, **options).batches(epoch) for epoch in (0, 1)]

    first, second = batches(seed=1)
    assert first != second and {frozenset(b) for b in first} != {frozenset(b) for b in second}
    assert first != batches(seed=2)[0]
    first, second = batches(shuffle=False)
    assert first == second and max(lengths) in (lengths[i] for i in first[0])


def test_padding_is_small():
    torch.manual_seed(0)
    lengths = torch.randint(10, 500, (3000,)).tolist()
    batches = LengthBucketSampler(lengths, 8000).batches(0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.12 * sum(lengths)
    assert len(batches) < 1.2 * sum(lengths) / 8000


def test_ranks_compute_batches_of_similar_length_in_a_step():
    lengths = list(range(10, 400))
    batches = LengthBucketSampler(lengths, 2000, world_size=2).batches(0)
    for first, second in zip(batches[0::2], batches[1::2], strict=True):
        assert abs(max(lengths[i] for i in first) - max(lengths[i] for i in second)) < 80


def test_messages_name_the_item_and_the_remedy():
    with pytest.raises(ValueError, match="item 1 has 90 tokens.*raise batch_tokens"):
        LengthBucketSampler([5, 90], 60)
    with pytest.raises(ValueError, match="item dog-1 has 90 tokens"):
        LengthBucketSampler([5, 90], 60, name=lambda index: f"dog-{index}")
    with pytest.raises(ValueError, match="no items"):
        LengthBucketSampler([], 60)
    with pytest.raises(ValueError, match="3 items.*2 processes"):
        LengthBucketSampler([50, 50, 50], 60, world_size=2).batches(0)


def item(name, length, **audio):
    return Item({"id": name}, list(range(1, length + 1)), [IGNORE] * (length - 1) + [length], **audio)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_pads_text_on_a_side_and_audio_at_its_end(side):
    features = [torch.ones(2, 4, 3, dtype=torch.float16), torch.ones(2, 6, 3, dtype=torch.float16)]
    batch = collate([item("a", 5, features=features[0]), item("b", 3, features=features[1])], side=side)
    assert batch.ids == ["a", "b"] and batch.rows[1] == {"id": "b"}
    assert batch.features.shape == (2, 2, 6, 3) and batch.features.dtype == torch.float16
    assert batch.frames.tolist() == [4, 6] and batch.waveforms is None and batch.samples is None
    assert batch.features[0, :, 4:].abs().sum() == 0 and batch.features[1].min() == 1
    columns = slice(0, 3) if side == "right" else slice(2, 5)
    assert batch.input_ids[1, columns].tolist() == [1, 2, 3]
    assert batch.labels[1, columns].tolist() == [IGNORE, IGNORE, 3]
    assert batch.attention_mask.sum(dim=1).tolist() == [5, 3] and batch.attention_mask[1, columns].all()
    assert (batch.labels[~batch.attention_mask] == IGNORE).all()
    assert batch.input_ids.dtype == torch.int64 and batch.attention_mask.dtype == torch.bool


def test_collate_waveforms_and_move():
    batch = collate([item("a", 2, waveform=torch.ones(5)), item("b", 2, waveform=torch.ones(3))])
    assert batch.features is None and batch.frames is None
    assert batch.samples.tolist() == [5, 3] and batch.waveforms[1].tolist() == [1, 1, 1, 0, 0]
    moved = batch.to("meta")
    assert moved.waveforms.is_meta and moved.labels.is_meta and moved.features is None and moved.ids == ["a", "b"]
    with pytest.raises(ValueError, match='"left" or "right"'):
        collate([item("a", 2, waveform=torch.ones(5))], side="center")
