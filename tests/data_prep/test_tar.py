"""Tar shards: every clip once, reproducible bytes, and the names that NeMo expects."""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio.reading import read_audio
from audiolm_lite.data.manifest import read_manifest, write_manifest
from data_prep import tar
from data_prep.convert import main as convert
from data_prep.formats import FormatError, Report, load_format
from data_prep.formats.nemo import expand_shards
from data_prep.tar import main, pack

pytest.importorskip("webdataset")

CLIPS = 11


@pytest.fixture
def manifest(tmp_path):
    """Manifest of CLIPS clips with two rows each, and file names that members of WebDataset cannot have."""
    rows = []
    for number in range(CLIPS):
        file = tmp_path / f"wav/sub.{number % 2}/clip é {number}.{'wav' if number % 3 else 'FLAC'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.full(800 + number, 0.01 * number), 8000)
        for task in ("asr", "gender"):
            rows.append({"id": f"{task}-{number}", "audio": str(file.relative_to(tmp_path)), "task": task,
                         "instruction": "?", "target": "x", "dataset": "d", "split": "train"})  # fmt: skip
    write_manifest(tmp_path / "train.jsonl", rows)
    return tmp_path / "train.jsonl"


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("shards", [1, 4, CLIPS])
def test_every_clip_is_in_one_shard_with_all_its_rows(manifest, tmp_path, shards):
    report = pack(manifest, tmp_path / "out", shards)
    rows = read_manifest(tmp_path / "out/manifest.jsonl")
    assert report.read == report.written == len(rows) == 2 * CLIPS
    assert {row["shard_id"] for row in rows} == set(range(shards))
    assert {(row["id"], row["packed_from"]) for row in rows} == {(r["id"], r["audio"]) for r in read_manifest(manifest)}
    stored = {}
    for shard in range(shards):
        with tarfile.open(tmp_path / f"out/audio_{shard}.tar") as file:
            for member in file.getmembers():
                assert member.name not in stored and member.name.count(".") == 1  # WebDataset cuts at the first dot
                stored[member.name] = shard, file.extractfile(member).read()
    assert len(stored) == CLIPS
    for row in rows:
        assert stored[Path(row["audio"]).name] == (row["shard_id"], (tmp_path / row["packed_from"]).read_bytes())
    sizes = [sum(shard == number for shard, _ in stored.values()) for number in range(shards)]
    assert max(sizes) - min(sizes) <= 1


def test_nemo_manifest_has_its_fields(manifest, tmp_path):
    pack(manifest, tmp_path / "out", 2)
    lines = (tmp_path / "out/tarred_audio_manifest.json").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert {"audio_filepath", "duration", "offset", "question", "answer", "shard_id"} <= first.keys()
    defaults = {"dataset": "d"}
    assert "/" not in first["audio_filepath"]
    shards = str(tmp_path / "out/audio__OP_0..1_CL_.tar")
    rows = load_format("nemo").read(tmp_path / "out/tarred_audio_manifest.json", Report(), defaults, shards=shards)
    rows = list(rows)
    assert rows == read_manifest(tmp_path / "out/manifest.jsonl")


@pytest.mark.parametrize("after", [0, 1, 4, 7, CLIPS - 1])
def test_an_interrupted_run_continues_to_the_same_bytes(manifest, tmp_path, monkeypatch, after):
    """The run is interrupted while it writes a shard."""
    pack(manifest, tmp_path / "uninterrupted", 3, seed=5)
    import webdataset

    write, written = webdataset.TarWriter.write, []

    def failing(self, sample):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(sample["__key__"])
        return write(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(webdataset.TarWriter, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            pack(manifest, tmp_path / "interrupted", 3, seed=5)
    assert not (tmp_path / "interrupted/manifest.jsonl").exists()
    finished = {file: file.stat().st_ino for file in (tmp_path / "interrupted").glob("audio_*.tar")}
    pack(manifest, tmp_path / "interrupted", 3, seed=5)
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "uninterrupted")
    assert all(file.stat().st_ino == inode for file, inode in finished.items())  # not written again


def test_a_damaged_shard_is_written_again(manifest, tmp_path):
    pack(manifest, tmp_path / "out", 2)
    before, shard = contents(tmp_path / "out"), tmp_path / "out/audio_1.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    pack(manifest, tmp_path / "out", 2)
    assert contents(tmp_path / "out") == before


def test_shards_of_another_plan_are_refused(manifest, tmp_path):
    pack(manifest, tmp_path / "out", 2)
    with pytest.raises(FormatError, match="with another seed"):
        pack(manifest, tmp_path / "out", 2, seed=1)
    with pytest.raises(FormatError, match="with another shards"):
        pack(manifest, tmp_path / "out", 3)
    write_manifest(manifest, read_manifest(manifest)[:-1])
    with pytest.raises(FormatError, match="with another manifest_sha256"):
        pack(manifest, tmp_path / "out", 2)
    (tmp_path / "out/plan.json").unlink()
    with pytest.raises(FormatError, match="no plan.json"):
        pack(manifest, tmp_path / "out", 2)
    with pytest.raises(FormatError, match="choose 1 to 11"):
        pack(manifest, tmp_path / "more", 12)


def test_unreadable_audio_is_rejected_and_changes_the_exit_status(manifest, tmp_path, capsys):
    """Also in a second run, for which the shards exist."""
    (tmp_path / "wav/sub.1/clip é 1.wav").write_bytes(b"no audio")
    arguments = [str(manifest), str(tmp_path / "out"), "--shards", "3"]
    for _ in range(2):
        with pytest.raises(FormatError, match="2 of 22 rows were rejected"):
            main(arguments)
        assert not (tmp_path / "out/manifest.jsonl").exists()
        assert main([*arguments, "--max_rejects", "0.1"]) == 3
        assert "rows packed    20" in capsys.readouterr().out
        listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
        assert [entry["id"] for entry in listed] == ["asr-1", "gender-1"] and "clip é 1.wav" in listed[0]["reason"]
        (tmp_path / "out/manifest.jsonl").unlink()
    assert len(list((tmp_path / "out").glob("audio_*.tar"))) == 3


def test_members_have_extensions_that_webdataset_accepts():
    assert [tar._ending(name) for name in ("a.WAV", "b", "c.x y", "d.tar.ogg")] == [".wav", ".audio", ".audio", ".ogg"]


def test_a_tarred_manifest_of_nemo_gets_paths_of_shard_members(manifest, tmp_path):
    """Also for the second segment of a file, which NeMo lists under another name and stores once."""
    rows = [row | {"start": 0.02} if row["task"] == "gender" else row for row in read_manifest(manifest)]
    write_manifest(manifest, rows)
    pack(manifest, tmp_path / "out", 3)
    lines = [json.loads(line) for line in (tmp_path / "out/tarred_audio_manifest.json").open()]
    for number, line in enumerate(lines):
        if number % 2:
            line["audio_filepath"] = line["audio_filepath"].replace(".", "-sub1.")
    (tmp_path / "nemo.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["nemo", "manifest", str(tmp_path / "nemo.json"), str(tmp_path / "rows.jsonl")]
    assert convert([*command, "--shards", f"{tmp_path}/out/audio__OP_0..2_CL_.tar"]) == 0
    packed = read_manifest(tmp_path / "out/manifest.jsonl")
    for row, expected in zip(read_manifest(tmp_path / "rows.jsonl"), packed, strict=True):
        assert (row["id"], row["shard_id"]) == (expected["id"], expected["shard_id"])
        files = (tmp_path / row["audio"], tmp_path / "out" / expected["audio"])
        assert torch.equal(*(read_audio(file, row["start"], row["duration"]) for file in files))
    with pytest.raises(FormatError, match="is not one of the 1 shards"):
        convert([*command, "--shards", f"{tmp_path}/out/audio_0.tar"])
    assert "is not one of the 1 shards" in (tmp_path / "rows.jsonl.rejected.jsonl").read_text()
    with pytest.raises(FormatError, match="must end in its number"):
        convert([*command, "--shards", f"{tmp_path}/out/audio.tar"])


def test_patterns_of_nemo_and_of_shells():
    names = ["a/audio_0.tar", "a/audio_1.tar", "a/audio_2.tar"]
    assert [str(path) for path in expand_shards("a/audio__OP_0..2_CL_.tar")] == names
    assert [str(path) for path in expand_shards("a/audio_{0..2}.tar")] == names
    assert [str(path) for path in expand_shards("a/audio_1.tar")] == names[1:2]


def test_a_missing_library_is_an_error_with_the_remedy(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(FormatError, match=r'pip install "audiolm_lite\[data\]"'):
        pack(manifest, tmp_path / "out", 2)
