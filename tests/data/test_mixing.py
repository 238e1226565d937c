"""Mixing: the requested proportions, even use of all rows, and the same epochs after a restart."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.data.batching import LengthBucketSampler
from audiolm_lite.data.mixing import Mixture, temperature_weights

manifests = st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=1, max_size=4)


@given(manifests=manifests, seed=st.integers(0, 3), epochs=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_rows_are_used_evenly_and_in_proportion_to_the_weights(manifests, seed, epochs):
    sizes, weights = zip(*manifests)
    mixture, total = Mixture(sizes, weights, seed), sum(sizes)
    starts = np.cumsum([0, *sizes])
    used = [Counter() for _ in sizes]
    for epoch in range(epochs):
        items = mixture.epoch(epoch)
        for number, (_, weight) in enumerate(manifests):
            own = items[(items >= starts[number]) & (items < starts[number + 1])]
            assert len(own) == mixture.counts[number]
            assert abs(len(own) - total * weight / sum(weights)) <= 1  # rounding, and at least one row
            used[number].update(own.tolist())
    for counts, size in zip(used, sizes):
        often = [counts[item] for item in counts] + [0] * (size - len(counts))
        assert max(often) - min(often) <= 1  # no row is used two times more than another


def test_epochs_depend_on_the_seed_only():
    first, again, other = (Mixture([50, 50], [1, 3], seed) for seed in (1, 1, 2))
    assert first.epoch(7).tolist() == again.epoch(7).tolist() != other.epoch(7).tolist()
    assert first.epoch(0).tolist() != first.epoch(1).tolist()


def test_a_higher_temperature_makes_the_counts_more_equal():
    assert Mixture([900, 100], temperature_weights([900, 100], 1)).counts == [900, 100]
    assert Mixture([900, 100], temperature_weights([900, 100], 2)).counts == [750, 250]
    assert Mixture([900, 100], temperature_weights([900, 100], 1e9)).counts == [500, 500]
    with pytest.raises(ConfigError, match="mixing_temperature is 0.5; it must be at least 1"):
        temperature_weights([1, 2], 0.5)


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_of_a_mixture_are_split_evenly_across_ranks(world_size):
    lengths = np.random.default_rng(0).integers(5, 60, size=300)
    mixture = Mixture([200, 100], [1, 3], seed=4)

    for epoch in (1, 2):
        batches = LengthBucketSampler(lengths, 200, seed=4, world_size=world_size, mixture=mixture).batches(epoch)
        assert len(batches) % world_size == 0
        assert Counter(i for batch in batches for i in batch) == Counter(mixture.epoch(epoch).tolist())
        assert all(len(batch) * lengths[batch].max() <= 200 for batch in batches)


def test_the_description_counts_rows_and_tokens():
    mixture = Mixture([4, 8], [1, 2])
    described = mixture.describe(["a.jsonl", "b.jsonl"], np.array([30] * 4 + [5] * 8, dtype=np.int32))
    assert described == (
        "a.jsonl: 4 of 4 rows (33.3 %), 120 tokens (75.0 %); b.jsonl: 8 of 8 rows (66.7 %), 40 tokens (25.0 %)"
    )


def test_entries_are_paths_or_paths_with_weights():
    assert split_entries(["a", "b"]) == (["a", "b"], None)
    assert split_entries([{"path": "a", "weight": 2}, {"path": "b", "weight": 0.5}]) == (["a", "b"], [2.0, 0.5])
    for entries, message in {
        "mixed": (["a", {"path": "b", "weight": 1}], "only some have a weight"),
        "form": ([{"path": "a", "weights": 1}], "write a path, or {path: ..., weight: 2}"),
        "type": ([{"path": "a", "weight": "1"}], "write a path, or {path: ..., weight: 2}"),
        "number": ([3], "3 is not a path"),
    }.values():
        with pytest.raises(ConfigError, match=message):
            split_entries(entries)
    with pytest.raises(ValueError, match="weights > 0"):
        Mixture([3, 3], [1, 0])
    with pytest.raises(ValueError, match="manifest 2 of 2 has no item"):
        Mixture([3, 0], [1, 1])
