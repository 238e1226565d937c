"""The feature store: what goes in comes out, whatever interrupts the writer; another fingerprint is refused by name."""

import json
import os
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from audiolm_lite.features import store as store_module
from audiolm_lite.features.store import FeatureStore, FeatureStoreError, FeatureWriter

FINGERPRINT = {"type": "toy", "weights": "abc", "layers": (0, 1), "window": None}
SHARD = 300  # bytes: two or three clips


def clip(seed, frames=None, layers=2, dim=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, frames or 3 + seed % 5, dim, generator=generator)


def fill(folder, seeds, **arguments):
    with FeatureWriter(folder, FINGERPRINT, **{"shard_bytes": SHARD, **arguments}) as writer:
        for seed in seeds:
            if f"clip {seed}" not in writer:
                writer.add(f"clip {seed}", clip(seed))


def check(folder, seeds, dtype=torch.float16):
    store = FeatureStore(folder, FINGERPRINT)
    assert sorted(store.keys()) == sorted(f"clip {seed}" for seed in seeds) and len(store) == len(list(seeds))
    for seed in seeds:
        features = store[f"clip {seed}"]
        assert features.dtype == dtype and store.frames(f"clip {seed}") == features.shape[1]
        assert torch.equal(features, clip(seed).to(dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_round_trip(tmp_path, dtype):
    fill(tmp_path, range(10), dtype=dtype)
    check(tmp_path, range(10), getattr(torch, dtype))
    store = FeatureStore(tmp_path)
    assert (store.num_layers, store.feature_dim) == (2, 8)
    assert store.fingerprint == {**FINGERPRINT, "layers": [0, 1]}
    assert len(list(tmp_path.glob("features-00-*.safetensors"))) > 2
    assert "clip 3" in store and "clip 10" not in store
    with pytest.raises(FeatureStoreError, match="no features for 'clip 10'"):
        store["clip 10"]


def test_a_slice_of_a_batch_is_stored_alone(tmp_path):
    batch = torch.randn(4, 2, 50, 8)
    with FeatureWriter(tmp_path, FINGERPRINT, dtype="float32") as writer:
        for i in range(4):
            writer.add(str(i), batch[i, :, : 3 + i])
    store = FeatureStore(tmp_path)
    assert all(torch.equal(store[str(i)], batch[i, :, : 3 + i]) for i in range(4))
    assert (tmp_path / "features-00-00000.safetensors").stat().st_size < 4 * 2 * 6 * 8 * 4 + 1000


def test_ranks_share_a_folder(tmp_path):
    fill(tmp_path, range(0, 10, 2), rank=0)
    fill(tmp_path, range(1, 10, 2), rank=1)
    check(tmp_path, range(10))


def test_workers_read_the_store(tmp_path):
    fill(tmp_path, range(6))
    store = FeatureStore(tmp_path)
    expected = store["clip 0"]  # its shard is open in this process, and in no other
    assert torch.equal(pickle.loads(pickle.dumps(store))["clip 0"], expected)
    loaded = DataLoader([f"clip {i}" for i in range(6)], batch_size=None, num_workers=1, collate_fn=store.__getitem__)
    for seed, features in enumerate(loaded):
        assert torch.equal(features, clip(seed).half())


class Killed(BaseException):
    """Stands for the end of the process: nothing of the writer runs any more."""


def die(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize("moment", ["before the shard", "within the shard", "before its name", "before the index"])
def test_a_killed_writer_goes_on_where_it_stopped(tmp_path, monkeypatch, moment):
    writer = FeatureWriter(tmp_path, FINGERPRINT, shard_bytes=SHARD)
    for seed in range(4):
        writer.add(f"clip {seed}", clip(seed))
    before = set(writer.stored)
    assert before and writer.pending

    def half_written(tensors, file):
        file.write_bytes(b"\x20\x00")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "before the shard":
            raise Killed
        if moment == "within the shard":
            patch.setattr(store_module, "save_file", half_written)
        elif moment == "before its name":
            patch.setattr(os, "replace", die)
        else:
            patch.setattr(type(writer.index), "open", die)
        writer.close()

    assert set(FeatureStore(tmp_path).keys()) == before
    assert FeatureWriter(tmp_path, FINGERPRINT).stored == before
    fill(tmp_path, range(8))
    check(tmp_path, range(8))
    assert not list(tmp_path.glob("*.tmp"))


def test_an_index_line_without_its_end_does_not_count(tmp_path):
    fill(tmp_path, range(8))
    index = tmp_path / "index-00.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    whole = {key for line in lines[:-1] for key in json.loads(line)["frames"]}
    assert set(FeatureStore(tmp_path).keys()) == whole
    fill(tmp_path, range(8))
    check(tmp_path, range(8))


@pytest.mark.parametrize("damage", ["cut off", "missing"])
@pytest.mark.parametrize("repairing_rank", [0, 1])
def test_damaged_shards_are_named_and_made_anew(tmp_path, damage, repairing_rank):
    fill(tmp_path, range(8))
    shard = tmp_path / "features-00-00001.safetensors"
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(
        FeatureStoreError, match="features-00-00001.safetensors: missing or cut off.*run the extraction"
    ):
        FeatureStore(tmp_path)
    fill(tmp_path, range(8), rank=repairing_rank)
    check(tmp_path, range(8))


def test_old_shards_are_flushed_by_age(tmp_path):
    writer = FeatureWriter(tmp_path, FINGERPRINT, flush_seconds=0)
    writer.add("clip 0", clip(0))
    check(tmp_path, [0])


def test_other_settings_are_refused_by_name(tmp_path):
    fill(tmp_path, range(3))
    asked = {"type": "toy", "weights": "xyz", "layers": [0, 1], "window": 10, "audio": {"rate": 8000}}
    with pytest.raises(FeatureStoreError) as error:
        FeatureStore(tmp_path, asked)
    message = str(error.value)
    assert "fingerprint.weights: stored 'abc', asked 'xyz'" in message
    assert "fingerprint.window: stored None, asked 10" in message
    assert "fingerprint.audio.rate: stored 'nothing', asked 8000" in message
    assert "layers" not in message and "type" not in message
    with pytest.raises(FeatureStoreError, match="fingerprint.weights"):
        FeatureWriter(tmp_path, asked)
    with pytest.raises(FeatureStoreError, match="dtype: stored 'float16', asked 'bfloat16'"):
        FeatureWriter(tmp_path, FINGERPRINT, dtype="bfloat16")
    with pytest.raises(FeatureStoreError, match="none of float16"):
        FeatureWriter(tmp_path / "other", FINGERPRINT, dtype="int4")


def test_missing_and_foreign_stores_are_refused(tmp_path):
    with pytest.raises(FeatureStoreError, match="no feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(FeatureStoreError, match="format 99"):
        FeatureStore(tmp_path)


def test_unfit_features_are_refused(tmp_path):
    with FeatureWriter(tmp_path, FINGERPRINT) as writer:
        writer.add("a", clip(0))
        for key, features, message in (
            ("a", clip(1), "stored already"),
            ("b", clip(1, dim=9), "2 layers of dimension 9; the store has 2 of 8"),
            ("b", clip(1)[0], r"not \[L, T, D\]"),
            ("b", clip(1)[:, :0], r"not \[L, T, D\]"),
            ("b", clip(1) * 1e6, "store bfloat16 or float32"),
            ("b", clip(1) * float("nan"), "NaN"),
        ):
            with pytest.raises(FeatureStoreError, match=message):
                writer.add(key, features)
    assert FeatureStore(tmp_path).keys() == ["a"]
