"""Which part of a job a process does: that of `--shard`, of its rank, or the whole job."""

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed.partition import Partition, parse_partition


def test_shards_are_counted_from_one():
    assert parse_partition("1/1") == Partition(0, 1, finishes=False)
    assert parse_partition("3/8") == Partition(2, 8, finishes=False)
    for wrong in ("0/8", "9/8", "3", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="I/N"):
            parse_partition(wrong)


def test_without_a_shard_the_launcher_decides(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert parse_partition(None) == Partition(0, 1, finishes=True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        assert parse_partition(None) == Partition(rank, 4, finishes=rank == 0)
        assert parse_partition("2/3") == Partition(1, 3, finishes=False)
