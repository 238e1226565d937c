"""The feature store: features are read as written, whatever interrupts the writer; differing settings are named."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.data import DataLoader

from audiolm_lite.features import key_table as key_table_module
from audiolm_lite.features import writer as writer_module
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import FeatureStoreError
from audiolm_lite.features.verify import main, verify
from audiolm_lite.features.writer import FeatureWriter, UnfitFeaturesError

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
    keys = ["unknown", *(f"clip {seed}" for seed in seeds), "unknown too"]
    assert store.frames_of(keys).tolist() == [-1, *(clip(seed).shape[1] for seed in seeds), -1]


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


def test_int8_is_exact_to_half_a_step_in_every_channel(tmp_path):
    """Channels differ in size by a factor of 10 million, one is silent; any safetensors reader finds the scales."""
    features = {str(seed): clip(seed) * 10.0 ** torch.arange(-3, 5) for seed in range(4)}
    with FeatureWriter(tmp_path, FINGERPRINT, dtype="int8") as writer:
        for key, clip_features in features.items():
            clip_features[0, :, 2] = 0
            writer.add(key, clip_features)
    store = FeatureStore(tmp_path)
    with safe_open(next(tmp_path.glob("features*")), "pt") as file:
        for key, expected in features.items():
            scale = file.get_tensor(key + "\0scale")
            assert file.get_tensor(key).dtype == torch.int8 and scale.shape == (2, 8)
            assert torch.equal(store[key], file.get_tensor(key) * scale[:, None])
            assert ((store[key] - expected).abs() <= expected.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
            assert torch.equal(store.read(key, [1]), store[key][1:])


@settings(max_examples=30, deadline=None)
@given(
    layers=st.lists(st.integers(-3, 2), min_size=1, max_size=4),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "int8"]),
)
def test_selected_layers_equal_those_of_all(tmp_path_factory, layers, dtype):
    folder = tmp_path_factory.mktemp("store")
    with FeatureWriter(folder, FINGERPRINT, dtype=dtype) as writer:
        for seed in range(3):
            writer.add(f"ü {seed}", clip(seed, layers=3, dim=5))
    store = FeatureStore(folder)
    for key in store:
        assert torch.equal(store.read(key, layers), store[key][layers])
    for wrong in ([], [3], [0, -4]):
        with pytest.raises(FeatureStoreError, match="layers .*the store has 0 to 2"):
            store.read(key, wrong)


def test_one_layer_is_read_without_the_rest(tmp_path):
    """Reading one layer of each clip makes about as much memory resident as that layer has."""
    with FeatureWriter(tmp_path, FINGERPRINT) as writer:
        for seed in range(4):
            writer.add(str(seed), torch.ones(16, 512, 512))  # 8 MB, 0.5 MB a layer
    store = FeatureStore(tmp_path)
    [shard] = tmp_path.glob("features*")
    with shard.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for key in store:
        store.read(key, [3])
    [entry] = re.findall(rf"{shard}\n(?:\w+:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert int(entry) < 8000  # 2000 were read of 32000; the kernel maps some pages around each


def test_features_read_are_copies(tmp_path):
    fill(tmp_path, range(2))
    store = FeatureStore(tmp_path)
    store["clip 0"].zero_()
    store.read("clip 0", [1]).zero_()
    check(tmp_path, range(2))
    assert torch.equal(store["clip 0"], clip(0).half())


def test_a_slice_is_stored_without_its_batch(tmp_path):
    batch = torch.randn(4, 2, 50, 8)
    with FeatureWriter(tmp_path, FINGERPRINT, dtype="float32") as writer:
        for i in range(4):
            writer.add(str(i), batch[i, :, : 3 + i])
    store = FeatureStore(tmp_path)
    assert all(torch.equal(store[str(i)], batch[i, :, : 3 + i]) for i in range(4))
    assert (tmp_path / "features-00-00000.safetensors").stat().st_size < 4 * 2 * 6 * 8 * 4 + 1000


def test_several_ranks_write_to_one_folder(tmp_path):
    fill(tmp_path, range(0, 10, 2), rank=0)
    fill(tmp_path, range(1, 10, 2), rank=1)
    check(tmp_path, range(10))


def open_as_rank(folder, rank):
    """Exit status 3 if another process writes to the store as this rank."""
    try:
        FeatureWriter(folder, {}, rank=rank)
    except FeatureStoreError as error:
        assert f"another process is writing to this store as rank {rank}" in str(error)
        sys.exit(3)


def test_a_rank_has_one_writer_at_a_time(tmp_path):
    with FeatureWriter(tmp_path, {}, rank=1):
        for rank, status in ((1, 3), (2, 0)):
            process = multiprocessing.get_context("fork").Process(target=open_as_rank, args=(tmp_path, rank))
            process.start()
            process.join()
            assert process.exitcode == status


def test_workers_read_the_store(tmp_path):
    fill(tmp_path, range(6))
    store = FeatureStore(tmp_path)
    expected = store["clip 0"]  # its shard is open in this process, and in no other
    assert torch.equal(pickle.loads(pickle.dumps(store))["clip 0"], expected)
    loaded = DataLoader([f"clip {i}" for i in range(6)], batch_size=None, num_workers=1, collate_fn=store.__getitem__)
    for seed, features in enumerate(loaded):
        assert torch.equal(features, clip(seed).half())


class Killed(BaseException):
    """Represents the end of the process: no code of the writer runs after it."""


def die(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize("moment", ["before the shard", "within the shard", "before its name", "before the index"])
def test_a_killed_writer_continues_where_it_stopped(tmp_path, monkeypatch, moment):
    writer = FeatureWriter(tmp_path, FINGERPRINT, shard_bytes=SHARD)
    for seed in range(4):
        writer.add(f"clip {seed}", clip(seed))
    before = set(writer.new)
    assert before and writer.pending

    def half_written(tensors, file):
        file.write_bytes(b"\x20\x00")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "before the shard":
            raise Killed
        if moment == "before the index":
            patch.setattr(FeatureWriter, "_append", die)
        else:
            patch.setattr(Path, "unlink", die)  # nothing deletes the temporary file of a killed process
            if moment == "within the shard":
                patch.setattr(writer_module, "save_file", half_written)
            else:
                patch.setattr(os, "replace", die)
        writer.close()
    unfinished = [file.stat().st_size for file in tmp_path.glob("*.tmp")]
    assert len(unfinished) == (moment in ("within the shard", "before its name"))

    assert set(FeatureStore(tmp_path).keys()) == before
    assert set(FeatureWriter(tmp_path, FINGERPRINT).stored) == before
    fill(tmp_path, range(8))
    check(tmp_path, range(8))
    assert not list(tmp_path.glob("*.tmp"))


def test_an_index_line_without_a_line_end_is_ignored(tmp_path):
    fill(tmp_path, range(8))
    index = tmp_path / "index-00.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    complete = set()
    for line in lines[:-1]:
        with safe_open(tmp_path / json.loads(line)["shard"], "pt") as file:
            complete |= set(file.keys())
    assert set(FeatureStore(tmp_path).keys()) == complete
    fill(tmp_path, range(8))
    check(tmp_path, range(8))


@pytest.mark.parametrize("damage", ["cut off", "missing"])
@pytest.mark.parametrize("repairing_rank", [0, 1])
def test_damaged_shards_are_named_and_replaced(tmp_path, damage, repairing_rank):
    fill(tmp_path, range(8))
    shard = tmp_path / "features-00-00001.safetensors"
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(FeatureStoreError, match=r"features-00-00001.safetensors: (is missing|has).*run the extraction"):
        FeatureStore(tmp_path)
    fill(tmp_path, range(8), rank=repairing_rank)
    check(tmp_path, range(8))
    assert not shard.exists()


@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 3), (1, 2)])
def test_checksums_reveal_a_flipped_bit(tmp_path, rank, world_size):
    """Checked by the rank that wrote the shard or, with fewer ranks than before, by the one responsible for it."""
    fill(tmp_path, range(8), rank=1)
    shard = tmp_path / "features-01-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    FeatureStore(tmp_path)  # compares only sizes
    assert verify(tmp_path) == {shard.name: "is damaged: its checksum is not the one in the index"}
    fill(tmp_path, [], rank=world_size + rank + 1, world_size=world_size + rank + 2)  # not responsible
    assert verify(tmp_path)
    fill(tmp_path, range(8), rank=rank, world_size=world_size)
    check(tmp_path, range(8))
    assert verify(tmp_path) == {}


def test_verify_as_a_command(tmp_path, capsys):
    fill(tmp_path, range(4))
    assert main([str(tmp_path)]) == 0
    os.truncate(tmp_path / "features-00-00000.safetensors", 3)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "no damage" in printed and "features-00-00000.safetensors: has 3 bytes of" in printed


def test_the_table_of_keys_is_made_once(tmp_path, monkeypatch):
    fill(tmp_path, range(6))
    check(tmp_path, range(6))
    with monkeypatch.context() as patch:
        patch.setattr(key_table_module, "_make_table", die)
        check(tmp_path, range(6))
    fill(tmp_path, range(9))
    check(tmp_path, range(9))
    (tmp_path / "keys.safetensors").write_bytes(b"damaged")
    check(tmp_path, range(9))
    (tmp_path / "keys.safetensors").unlink()

    def refuse(*arguments, **options):
        raise PermissionError

    monkeypatch.setattr(key_table_module, "write_bytes", refuse)
    check(tmp_path, range(9))  # in a read-only folder
    assert not (tmp_path / "keys.safetensors").exists()


def test_keys_of_equal_crc_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.setattr("audiolm_lite.storage.name_table.zlib.crc32", lambda data, start=0: 7)
    fill(tmp_path, range(6))
    check(tmp_path, range(6))
    assert "clip 7" not in FeatureStore(tmp_path)
    assert FeatureStore(tmp_path).frames_of(["clip 7"]).tolist() == [-1]


def test_a_full_disk_leaves_a_usable_store(tmp_path, monkeypatch):
    fill(tmp_path, range(4))

    def full(tensors, file):
        file.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "save_file", full)
        with pytest.raises(FeatureStoreError, match="No space left on device.* MB are free in .*free space"):
            fill(tmp_path, range(8))
    assert not list(tmp_path.glob("*.tmp"))
    check(tmp_path, range(4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(FeatureStoreError, match="No space left"):
            fill(tmp_path / "new", range(8))  # at store.json
    fill(tmp_path, range(8))
    check(tmp_path, range(8))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted on this machine")
    try:
        writer = FeatureWriter(disk, FINGERPRINT, dtype="float32", shard_bytes=50_000)
        with pytest.raises(FeatureStoreError, match=f"No space left.* 0 MB are free in {disk}"), writer:
            for seed in range(100):
                writer.add(f"clip {seed}", clip(seed, frames=100))
        store = FeatureStore(disk)
        assert len(store) > 10
        for key in store:
            assert torch.equal(store[key], clip(int(key.split()[1]), frames=100))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_old_shards_are_flushed_by_age(tmp_path):
    writer = FeatureWriter(tmp_path, FINGERPRINT, flush_seconds=0)
    writer.add("clip 0", clip(0))
    check(tmp_path, [0])


def test_differing_settings_are_named(tmp_path):
    fill(tmp_path, range(3))
    requested = {"type": "toy", "weights": "xyz", "layers": [0, 1], "window": 10, "audio": {"rate": 8000}}
    with pytest.raises(FeatureStoreError) as error:
        FeatureStore(tmp_path, requested)
    message = str(error.value)
    assert "fingerprint.weights: stored 'abc', requested 'xyz'" in message
    assert "fingerprint.window: stored None, requested 10" in message
    assert "fingerprint.audio.rate: stored 'nothing', requested 8000" in message
    assert "layers" not in message and "type" not in message
    with pytest.raises(FeatureStoreError, match="fingerprint.weights"):
        FeatureWriter(tmp_path, requested)
    with pytest.raises(FeatureStoreError, match="dtype: stored 'float16', requested 'bfloat16'"):
        FeatureWriter(tmp_path, FINGERPRINT, dtype="bfloat16")
    with pytest.raises(FeatureStoreError, match="long_audio: stored 'reject', requested 'crop'"):
        FeatureWriter(tmp_path, FINGERPRINT, long_audio="crop")
    with pytest.raises(FeatureStoreError, match="none of float16"):
        FeatureWriter(tmp_path / "other", FINGERPRINT, dtype="int4")


def test_missing_stores_and_other_formats_are_refused(tmp_path):
    with pytest.raises(FeatureStoreError, match="no feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": 1}))
    for use in (FeatureStore, lambda folder: FeatureWriter(folder, FINGERPRINT)):
        with pytest.raises(
            FeatureStoreError, match=r"format 1, .* reads format 2; delete the folder .* extraction again"
        ):
            use(tmp_path)


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
        for key in ("a\0scale", "__metadata__", "\udcff.wav"):
            with pytest.raises(UnfitFeaturesError, match="rename the audio file"):
                writer.add(key, clip(0))
    assert FeatureStore(tmp_path).keys() == ["a"]
