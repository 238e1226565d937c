"""Audio out of tar shards: each row once over ranks and workers, the same audio as from files, and damage by name."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.config.registry import build
from audiolm_lite.data import tarred
from audiolm_lite.data.batching import Item, collate
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import ManifestError, read_manifest, write_manifest
from audiolm_lite.data.tarred import TarredAudio, expand_shards
from audiolm_lite.features.extract import extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.prompt import PromptTemplate
from data_prep.convert import main as convert
from data_prep.tar import pack

pytest.importorskip("webdataset")

CLIPS, SHARDS = 23, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CLIPS clips in SHARDS shards, with one to three rows each, some of them segments."""
    root, rng, rows = tmp_path_factory.mktemp("tarred"), np.random.default_rng(0), []
    for clip in range(CLIPS):
        soundfile.write(root / f"{clip}.flac", rng.uniform(-0.5, 0.5, 1600 + 16 * clip), 16000)
        for part in range(1 + clip % 3):
            rows.append({"id": f"{clip}-{part}", "audio": f"{clip}.flac", "task": f"t{part}", "instruction": "?",
                         "target": "x", "dataset": "d", "split": "valid" if clip == 3 else "train",
                         "start": 0.02 * part, "duration": 0.05 if part else None})  # fmt: skip
    write_manifest(root / "train.jsonl", rows)
    pack(root / "train.jsonl", root / "out", SHARDS)
    return root / "out"


def dataset(folder, tmp_path, **options) -> TarredAudio:
    return TarredAudio(
        folder / "manifest.jsonl", folder / f"audio__OP_0..{SHARDS - 1}_CL_.tar", rejected=tmp_path / "bad", **options
    )


def ids(data) -> list[str]:
    return [row["id"] for row, _ in data]


@pytest.mark.parametrize("shuffle", [0, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ranks_and_workers_together_have_each_row_once(folder, tmp_path, monkeypatch, shuffle, world_size, workers):
    """Also with more of them than shards; workers are what `get_worker_info` says, so that no process is started."""
    all_ids = sorted(row["id"] for row in read_manifest(folder / "manifest.jsonl"))
    for epoch in range(2):
        found, counts = [], []
        for rank in range(world_size):
            data = dataset(folder, tmp_path, shuffle=shuffle, rank=rank, world_size=world_size)
            data.set_epoch(epoch)
            before = len(found)
            for worker in range(max(workers, 1)):
                info = type("Info", (), {"id": worker, "num_workers": workers}) if workers else None
                monkeypatch.setattr(tarred, "get_worker_info", lambda info=info: info)
                found += ids(data)
            counts.append(len(found) - before)
            assert counts[-1] == len(data)
        assert sorted(found) == all_ids
        assert max(counts) - min(counts) <= 1
    assert not (tmp_path / "bad").exists()


@given(size=st.integers(0, 50), ranks=st.integers(1, 9), workers=st.integers(1, 9))
@settings(max_examples=100)
def test_parts_of_parts_cover_the_range(size, ranks, workers):
    covered = []
    for rank in range(ranks):
        first, last = tarred._part(rank, ranks, 0, size)
        assert last - first in (size // ranks, -(-size // ranks))
        for worker in range(workers):
            covered += range(*tarred._part(worker, workers, first, last))
    assert covered == list(range(size))


def test_workers_of_a_data_loader_follow_the_epoch(folder, tmp_path):
    """Real processes that live on from epoch to epoch."""
    data = dataset(folder, tmp_path)
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        orders.append(ids(loader))
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(ids(data)) and orders[0] != orders[1]


def test_order_depends_on_seed_and_epoch_alone(folder, tmp_path):
    def order(seed: int, epoch: int) -> list[str]:
        data = dataset(folder, tmp_path, seed=seed, shuffle=8)
        data.set_epoch(epoch)
        return ids(data)

    assert order(1, 0) == order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    in_order = [row["id"] for row in read_manifest(folder / "manifest.jsonl")]
    assert ids(dataset(folder, tmp_path, shuffle=0)) == in_order


def test_audio_is_that_of_the_files(folder, tmp_path):
    for row, waveform in dataset(folder, tmp_path):
        expected = read_audio(folder.parent / row["packed_from"], row["start"], row["duration"])
        assert torch.equal(waveform, expected)


def test_tasks_and_splits_are_chosen(folder, tmp_path):
    rows = [row for row, _ in dataset(folder, tmp_path, tasks=["t0", "t2"], split="train")]
    everything = read_manifest(folder / "manifest.jsonl")
    assert {row["id"] for row in rows} == {
        row["id"] for row in everything if row["task"] in ("t0", "t2") and row["split"] == "train"
    }
    with pytest.raises(ManifestError, match="no row has tasks"):
        dataset(folder, tmp_path, tasks=["other"])


def copied(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rejected(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "bad").read_text().splitlines()]


@pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "empty"])
def test_a_damaged_shard_costs_its_own_rows_only(folder, tmp_path, damage):
    copied(folder, tmp_path)
    shard = tmp_path / "audio_2.tar"
    content = shard.read_bytes()
    half = len(content) // 1024 * 512
    tail = {"cut": b"", "zeros": bytes(half), "noise": b"\xa5" * half, "empty": b""}[damage]
    shard.write_bytes(b"" if damage == "empty" else content[:half] + tail)
    found = ids(dataset(tmp_path, tmp_path))
    rows = {row["id"]: row for row in read_manifest(folder / "manifest.jsonl")}
    bad = [name for entry in rejected(tmp_path) for name in entry["ids"]]
    assert sorted(found + bad) == sorted(rows) and bad
    assert {rows[name]["shard_id"] for name in bad} == {2}
    assert all("audio_2.tar" in entry["shard"] and entry["reason"] for entry in rejected(tmp_path))


def test_a_damaged_member_is_named(folder, tmp_path):
    copied(folder, tmp_path)
    rows = [row for row in read_manifest(folder / "manifest.jsonl") if row["shard_id"] == 0]
    audio = rows[0]["audio"]
    member = audio.removeprefix("audio_0.tar/")
    with tarfile.open(folder / "audio_0.tar") as source, tarfile.open(tmp_path / "audio_0.tar", "w") as target:
        for info in source.getmembers():
            data = source.extractfile(info).read()
            if info.name == member:
                data = b"?" * len(data)
            target.addfile(info, io.BytesIO(data))
    found = ids(dataset(tmp_path, tmp_path))
    lost = {row["id"] for row in rows if row["audio"] == audio}
    assert lost == {name for entry in rejected(tmp_path) for name in entry["ids"]}
    assert len(found) == len(read_manifest(folder / "manifest.jsonl")) - len(lost)
    assert all(entry["member"] == member and "not readable as audio" in entry["reason"] for entry in rejected(tmp_path))


def test_manifests_and_shards_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ManifestError, match="2 shards are not there, the first is .*audio_4.tar"):
        TarredAudio(folder / "manifest.jsonl", folder / "audio_{0..5}.tar", rejected=tmp_path / "bad")
    with pytest.raises(ManifestError, match='field "shard_id": .*write the number of one of the 1 shards'):
        TarredAudio(folder / "manifest.jsonl", folder / "audio_0.tar", rejected=tmp_path / "bad")
    with pytest.raises(ManifestError, match='field "shard_id": None'):
        TarredAudio(folder.parent / "train.jsonl", folder / "audio_{0..3}.tar", rejected=tmp_path / "bad")
    with pytest.raises(ManifestError, match="ends in its number"):
        TarredAudio(folder / "manifest.jsonl", folder / "audio.tar", rejected=tmp_path / "bad")


def test_patterns_of_nemo_and_of_shells():
    names = ["a/audio_0.tar", "a/audio_1.tar", "a/audio_2.tar"]
    assert [str(path) for path in expand_shards("a/audio__OP_0..2_CL_.tar")] == names
    assert [str(path) for path in expand_shards("a/audio_{0..2}.tar")] == names
    assert [str(path) for path in expand_shards("a/audio_1.tar")] == names[1:2]


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'pip install "audiolm_lite\[data\]"'):
        tarred.import_webdataset()


@pytest.mark.parametrize("name", ["a.wav", "a.pcm"])
def test_open_files_are_read_like_paths(tmp_path, name):
    samples = np.random.default_rng(0).integers(-9999, 9999, 500).astype("<i2")
    if name == "a.pcm":
        (tmp_path / name).write_bytes(samples.tobytes())
    else:
        soundfile.write(tmp_path / name, samples, 16000)
    data = (tmp_path / name).read_bytes()
    assert torch.equal(read_audio(tarred._named(data, f"shard/{name}")), read_audio(tmp_path / name))
    with pytest.raises(AudioError, match=f"shard/{name}"):
        read_audio(tarred._named(data[:41] if name == "a.wav" else b"", f"shard/{name}"))


def test_a_model_learns_from_shards_what_it_learns_from_files(folder, tmp_path, make_experiment, make_model):
    """Items of shards, made as the documentation shows, have the loss and gradients of `AudioTextDataset`'s items."""
    from transformers import AutoTokenizer

    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    tokenizer = AutoTokenizer.from_pretrained(experiment["llm"]["source"])
    template = PromptTemplate(experiment["template"])
    encoder, adapter = model.encoder, model.adapter

    def to_batch(pairs):
        items = []
        for row, waveform in pairs:
            tokens = adapter.num_tokens(encoder.num_frames(len(waveform)))
            items.append(Item(row, *template.encode(row, tokenizer, tokens), waveform=waveform))
        return collate(items)

    data = dataset(folder, tmp_path, tasks=["t0"], shuffle=0)
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=to_batch)))
    model.loss(batch).total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    files = AudioTextDataset(
        [folder.parent / "train.jsonl"], template, tokenizer, adapter.num_tokens, encoder_frames=encoder.num_frames
    )
    by_id = {row["id"]: index for index, row in enumerate(files.rows)}
    model.zero_grad()
    model.loss(collate([files[by_id[name]] for name in batch.ids])).total.backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.equal(parameter.grad, gradients[name]), name
    assert gradients


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_in_shards_are_rows_like_any_other(folder, make_experiment, make_model, workers):
    """Lengths, order and items of a dataset over shards are those over files: so resuming, buckets and mixing are."""
    from transformers import AutoTokenizer

    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    tokenizer = AutoTokenizer.from_pretrained(experiment["llm"]["source"])
    template = PromptTemplate(experiment["template"])
    options = {"encoder_frames": model.encoder.num_frames, "tasks": ["t0"]}
    shards, files = (
        AudioTextDataset([manifest], template, tokenizer, model.adapter.num_tokens, **options)
        for manifest in (folder / "manifest.jsonl", folder.parent / "train.jsonl")
    )
    place = {row["id"]: index for index, row in enumerate(files.rows)}
    same = [place[row["id"]] for row in shards.rows]
    assert np.array_equal(shards.lengths, files.lengths[same])
    for item, index in zip(DataLoader(shards, batch_size=None, num_workers=workers), same, strict=True):
        assert torch.equal(item.waveform, files[index].waveform) and item.input_ids == files[index].input_ids


def test_features_of_shards_are_those_of_the_files(folder, tmp_path):
    stores = []
    for name, manifest in (("shards", folder / "manifest.jsonl"), ("files", folder.parent / "train.jsonl")):
        rows = read_manifest(manifest)
        encoder = build("encoders", {"type": "logmel", "mels": 80, "padding": "exact"})
        extract(rows, encoder, tmp_path / name, audio_root=manifest.parent, workers=2)
        store = FeatureStore(tmp_path / name)
        stores.append({row["id"]: store[feature_key(row)] for row in rows})
    assert stores[0].keys() == stores[1].keys()
    assert all(torch.equal(features, stores[1][name]) for name, features in stores[0].items())


def test_manifest_of_nemo_leads_into_its_shards(folder, tmp_path):
    """Also of a second segment of a file, which NeMo lists under a name of its own and stores once."""
    lines = [json.loads(line) for line in (folder / "tarred_audio_manifest.json").open()]
    for number, line in enumerate(lines):
        if number % 2:
            line["audio_filepath"] = line["audio_filepath"].replace(".flac", "-sub1.flac")
    (tmp_path / "nemo.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["nemo", "manifest", str(tmp_path / "nemo.json"), str(tmp_path / "rows.jsonl")]
    assert convert([*command, "--shards", f"{folder}/audio__OP_0..{SHARDS - 1}_CL_.tar"]) == 0
    for row, ours in zip(read_manifest(tmp_path / "rows.jsonl"), read_manifest(folder / "manifest.jsonl"), strict=True):
        assert (row["id"], row["shard_id"]) == (ours["id"], ours["shard_id"])
        files = (tmp_path / row["audio"], folder / ours["audio"])
        assert torch.equal(*(read_audio(file, row["start"], row["duration"]) for file in files))
    assert convert([*command, "--shards", f"{folder}/audio_0.tar"]) == 1
