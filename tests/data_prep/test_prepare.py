"""From clips to manifests: streaming, rejected clips, filters, restart after an interruption."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from data_prep import checks
from data_prep.clips import Clip, CorpusError
from data_prep.prepare import SPLITS, prepare


@pytest.fixture
def corpus(tmp_path: Path) -> list[Clip]:
    """Twelve clips of 0.4 s with different noise, four per split."""
    clips = []
    for number in range(12):
        audio = tmp_path / "corpus" / f"c{number}.wav"
        audio.parent.mkdir(exist_ok=True)
        soundfile.write(audio, np.random.default_rng(number).uniform(-0.1, 0.1, 6400), 16000)
        clips.append(Clip("Toy", f"c{number}", audio, SPLITS[number % 3], f"g{number}", text=f"text {number}"))
    return clips


def settings(tmp_path: Path, **changed) -> dict:
    return {
        "output_folder": tmp_path / "out",
        "encoder": None,
        "seed": 1,
        "wordings": "varied",
        "max_rejects": 0.0,
    } | changed


def results(tmp_path: Path) -> tuple[list[str], list[dict]]:
    rows = [row for split in SPLITS for row in read_manifest(tmp_path / "out" / f"{split}.jsonl")]
    rejected = (tmp_path / "out/rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(row["id"].split("-")[1] for row in rows), [json.loads(line) for line in rejected]


def test_a_generator_is_read_only_a_little_ahead_and_tables_are_printed(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "_AHEAD", 3)
    pending, most = 0, 0
    original = checks.CheckedAudio.register

    def register(self, name: str, id: str) -> str | None:
        nonlocal pending, most
        most, pending = max(most, pending), pending - 1
        return original(self, name, id)

    def stream() -> Iterator[Clip]:
        nonlocal pending
        for clip in corpus:
            pending += 1
            yield clip

    monkeypatch.setattr(checks.CheckedAudio, "register", register)
    assert prepare(stream(), settings(tmp_path), {}) == 0
    assert most <= 5
    assert results(tmp_path) == (sorted(clip.id for clip in corpus), [])
    printed = capsys.readouterr().out
    assert "train  asr      4      4   0.00" in printed
    assert "rejected: 0 of 12 clips, 0 for faults" in printed
    assert sorted(path.name for path in (tmp_path / "out/preparation").iterdir()) == ["checks.sqlite"]


def test_rejected_clips_are_counted_by_reason(corpus, tmp_path, capsys):
    corpus[0].audio.unlink()
    corpus[3].audio.unlink()
    bad = [
        replace(corpus[6], text=""),
        replace(corpus[1], audio=corpus[2].audio),
        replace(corpus[5], split="dev"),
        replace(corpus[8], text=None),
        replace(corpus[9], text="\udcff"),
    ]
    bad = [clip if i == 1 else replace(clip, id=f"b{i}") for i, clip in enumerate(bad)]
    clips = [*corpus[:8], *bad]
    assert prepare(clips, settings(tmp_path, max_rejects=0.6), {}) == 3
    ids, rejected = results(tmp_path)
    assert ids == ["c1", "c2", "c4", "c5", "c6", "c7"]
    reasons = {entry["id"]: entry["reason"] for entry in rejected}
    for id, phrase in {
        "c0": "no such file",
        "c3": "no such file",
        "b0": "no transcript",
        "c1": "c1.wav has the same id c1",
        "b2": "split is 'dev'",
        "b3": "no annotation to ask about",
        "b4": "not valid Unicode",
    }.items():
        assert phrase in reasons.pop(id)
    assert not reasons and all("filter" not in entry for entry in rejected)
    printed = capsys.readouterr().out
    assert "    2  no such file" in printed
    assert f"rejected: 7 of 13 clips, 7 for faults, see {tmp_path}/out/rejected.jsonl" in printed


def test_filters_do_not_count_as_faults(corpus, tmp_path, capsys):
    soundfile.write(corpus[0].audio, np.full(16000, 0.1), 16000)  # 1 s
    soundfile.write(corpus[1].audio, np.full(160, 0.1), 16000)  # 10 ms
    soundfile.write(corpus[2].audio, np.zeros(6400), 16000)
    corpus[3] = replace(corpus[3], text="x" * 51)
    corpus[4].audio.write_bytes(corpus[7].audio.read_bytes())
    corpus[4] = replace(corpus[4], text=corpus[7].text)
    corpus[5].audio.write_bytes(corpus[8].audio.read_bytes())  # another text, so not a duplicate
    limits = {"min_seconds": 0.1, "max_seconds": 0.9, "max_characters": 50, "max_silence": 0.8, "duplicates": "drop"}
    assert prepare(corpus, settings(tmp_path, filters=limits), {}) == 0
    ids, rejected = results(tmp_path)
    assert ids == sorted(["c4", "c5", "c6", "c8", "c9", "c10", "c11"])
    assert {entry["id"]: entry["filter"] for entry in rejected} == {
        "c0": "max_seconds",
        "c1": "min_seconds",
        "c2": "max_silence",
        "c3": "max_characters",
        "c7": "duplicates",
    }
    assert "same audio and transcript as c4" in next(entry["reason"] for entry in rejected if entry["id"] == "c7")
    printed = capsys.readouterr().out
    assert "rejected: 5 of 12 clips, 0 for faults" in printed
    assert "filters left out 1 test clips" in printed


def test_transcripts_are_normalised(corpus, tmp_path):
    corpus[0] = replace(corpus[0], text="b/ (3시)/(세 시)")
    corpus[3] = replace(corpus[3], text="b/ n/")
    prepare(corpus, settings(tmp_path, text=["korean_noises", "korean_spoken"]), {})
    ids, rejected = results(tmp_path)
    assert len(ids) == 11 and read_manifest(tmp_path / "out/train.jsonl")[0]["target"] == "세 시"
    assert [(entry["id"], entry["filter"]) for entry in rejected] == [("c3", "text")]
    assert rejected[0]["reason"] == "no words in the transcript: b/ n/"
    with pytest.raises(ConfigError, match="unknown step 'korean'"):
        prepare(corpus, settings(tmp_path, text=["korean"]), {})


def test_with_too_many_faults_only_the_list_of_rejects_is_written(corpus, tmp_path):
    corpus[0].audio.unlink()
    with pytest.raises(CorpusError, match=r"1 of 12 clips were rejected, more than max_rejects 0.05 .*--max_rejects"):
        prepare(corpus, settings(tmp_path, max_rejects=0.05), {})
    assert not list((tmp_path / "out").glob("train*")) and (tmp_path / "out/rejected.jsonl").exists()
    prepare(corpus, settings(tmp_path, max_rejects=0.1), {})
    assert len(results(tmp_path)[0]) == 11


def test_a_restart_checks_no_file_twice(corpus, tmp_path, monkeypatch):
    inspected: list[Path] = []
    original = checks.CheckedAudio._inspect

    def counted(self, path: Path, *segment) -> checks.Check:
        inspected.append(path)
        return original(self, path, *segment)

    def killed_after(number: int) -> Iterator[Clip]:
        yield from corpus[:number]
        raise KeyboardInterrupt

    monkeypatch.setattr(checks.CheckedAudio, "_inspect", counted)
    monkeypatch.setattr(checks, "_AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(killed_after(7), settings(tmp_path), {})
    assert not (tmp_path / "out/train.jsonl").exists()
    inspected.clear()
    prepare(corpus, settings(tmp_path), {})
    assert len(inspected) in (5, 6) and results(tmp_path)[0] == sorted(clip.id for clip in corpus)
    inspected.clear()
    soundfile.write(corpus[0].audio, np.zeros(100), 16000)  # the file changes
    prepare(corpus, settings(tmp_path), {})
    assert inspected == [corpus[0].audio]


def test_clips_in_a_tar_file_are_prepared_like_files(corpus, tmp_path, monkeypatch):
    corpus[4].audio.write_bytes(corpus[7].audio.read_bytes())
    corpus[4] = replace(corpus[4], text=corpus[7].text)
    encoder = {"type": "logmel", "mels": 80, "padding": "exact"}
    options = {"feature_folder": tmp_path / "features", "feature_dtype": "float32", "long_audio": "reject"}
    options |= {"filters": {"duplicates": "drop"}, "encoder": encoder, "batch_seconds": 10.0, "num_workers": 0}
    assert prepare(corpus, settings(tmp_path, **options), {}) == 0
    expected, from_files = results(tmp_path), FeatureStore(tmp_path / "features")

    with tarfile.open(tmp_path / "corpus.tar", "w") as tar:
        tar.add(tmp_path / "corpus", "wav")
    packed = [replace(clip, audio=tmp_path / "corpus.tar/wav" / clip.audio.name) for clip in corpus]
    options["feature_folder"] = tmp_path / "of tar"
    assert prepare(packed, settings(tmp_path, **options), {}) == 0
    (ids, rejected), store = results(tmp_path), FeatureStore(tmp_path / "of tar")
    assert ids == expected[0] and [entry["filter"] for entry in rejected] == ["duplicates"]
    for row in read_manifest(tmp_path / "out/train.jsonl"):
        assert row["audio"].startswith("../corpus.tar/wav/")
        key = feature_key(row)
        assert torch.equal(store[key], from_files[key.replace("corpus.tar/wav", "corpus")])
    monkeypatch.setattr(checks.CheckedAudio, "_inspect", None)  # a second run inspects no file
    assert prepare(packed, settings(tmp_path, **options), {}) == 0


def test_debug_takes_a_few_of_each_split(corpus, tmp_path, monkeypatch):
    many = [replace(corpus[i % 12], id=f"m{i}", split=SPLITS[i % 3]) for i in range(100)]
    prepare(iter(many), settings(tmp_path), {"debug": True})
    rows = {split: read_manifest(tmp_path / "out" / f"{split}.jsonl") for split in SPLITS}
    assert {split: len(members) for split, members in rows.items()} == dict.fromkeys(SPLITS, 8)
