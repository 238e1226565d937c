"""Open-ASQA from miniatures of all its corpora, and the questions for each kind of annotation."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest
from data_prep.clips import Clip, Event, Label, Question
from data_prep.questions import questions
from data_prep.wordings import MINIASQA, VARIED
from tests.data_prep import miniatures
from tests.data_prep.miniatures import run_recipe

CORPORA = [
    "audioset", "vggsound", "fsd50k", "audiocaps", "clotho", "clotho_aqa", "iemocap", "libritts", "voxceleb2",
    "cmu_mosei", "fma",
]  # fmt: skip
TASKS = {
    "AudioSet": {"sounds"},
    "AudioSet-strong": {"sounds", "event_time", "timeline", "first_sound"},
    "VGGSound": {"sound_class"},
    "FSD50K": {"sounds"},
    "AudioCaps": {"caption"},
    "Clotho": {"caption"},
    "Clotho-AQA": {"qa"},
    "IEMOCAP": {"emotion", "gender", "asr"},
    "LibriTTS-train-clean-100": {"asr", "gender"},
    "VoxCeleb2": {"gender", "age"},
    "CMU-MOSEI": {"sentiment", "emotion", "asr"},
    "FMA": {"genre"},
}


def test_open_asqa_of_all_corpora(tmp_path):
    pytest.importorskip("h5py")
    options = [f"--{name}_folder" for name in CORPORA]
    folders = [getattr(miniatures, name)(tmp_path / name) for name in CORPORA]
    options = [word for pair in zip(options, folders) for word in pair]
    options += ["--libritts_subsets.train", "[train-clean-100]", "--valid_share", "0.3", "--output_folder"]
    run_recipe("OpenASQA/ltu_as", *options, tmp_path / "out")

    rows = {split: list(read_manifest(tmp_path / f"out/{split}.jsonl")) for split in ("train", "valid", "test")}
    tasks, audio = defaultdict(set), defaultdict(set)
    for split, members in rows.items():
        for row in members:
            tasks[row["dataset"]].add(row["task"])
            audio[split].add(row["audio"])
            assert (tmp_path / "out" / row["audio"]).is_file() and row["split"] == split
    assert {dataset: tasks[dataset] for dataset in TASKS} == TASKS
    assert not audio["train"] & audio["test"] and not audio["train"] & audio["valid"]

    # A test clip of AudioSet is a training clip of VGGSound, and one of Clotho-AQA is a training clip of Clotho.
    train = {row["id"] for row in rows["train"]}
    assert not any("--e000xphWE" in name or "development 0" in name for name in train)
    assert "Clotho-Waterfall, development 1.wav-caption" in train
    mosei = [row for row in rows["train"] if row["dataset"] == "CMU-MOSEI"]
    assert {row["start"] for row in mosei} == {0.0, 0.5} and all(0.39 < row["duration"] < 0.41 for row in mosei)
    [missing] = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert "tr1-ytid_ab" in missing["id"] and "no such file" in missing["reason"]


def test_open_asqa_without_a_corpus_names_the_options(tmp_path):
    with pytest.raises(ConfigError, match="no corpus: give at least one of --audioset_folder"):
        run_recipe("OpenASQA/ltu_as", "--output_folder", tmp_path)


def test_real_korean_talks_through_their_command(real_data, tmp_path):
    run_recipe("KoreanTEDx", "--data_folder", real_data / "korean_tedx", "--output_folder", tmp_path)
    rows = [row for split in ("train", "valid", "test") for row in read_manifest(tmp_path / f"{split}.jsonl")]
    assert len(rows) == 95 and {row["language"] for row in rows} == {"ko"}
    assert {row["instruction"] for row in rows} == {question for question, _ in VARIED["asr ko"]}


def test_real_clotho_through_its_command(real_data, tmp_path):
    """The eleven real clips, split across the corpus's three parts."""
    header, *lines = (real_data / "clotho/clotho_captions_validation.csv").read_text(encoding="utf-8").splitlines()
    for number, part in enumerate(("development", "validation", "evaluation")):
        miniatures.write_lines(tmp_path / f"clotho/clotho_captions_{part}.csv", header, *lines[number::3])
        (tmp_path / "clotho" / part).symlink_to(real_data / "clotho/validation")
    run_recipe("Clotho", "--data_folder", tmp_path / "clotho", "--output_folder", tmp_path / "out")
    rows = [row for split in ("train", "valid", "test") for row in read_manifest(tmp_path / f"out/{split}.jsonl")]
    assert len(rows) == 11 and all(len(row["references"]) == 5 and row["target"] in row["references"] for row in rows)
    assert all(15 <= row["duration"] <= 30 for row in rows) and (tmp_path / "out/rejected.jsonl").read_text() == ""


def rows_of(**annotations) -> dict[str, dict]:
    rows = questions(Clip("d", "i", Path("x"), "train", "g", **annotations), 1, "varied")
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def test_events_give_four_questions():
    events = (Event("dog", 2.0, 3.0), Event("speech", 0.5, 1.04), Event("dog", 4.0, 5.0))
    rows = rows_of(events=events)
    assert list(rows) == ["sounds", "event_time", "timeline", "first_sound"]
    assert rows["sounds"]["sounds"] == ["dog", "speech"] and "dog; speech" in rows["sounds"]["target"]
    assert rows["timeline"]["target"] == "speech 0.5-1.0 s; dog 2.0-3.0 s; dog 4.0-5.0 s"
    assert rows["first_sound"]["label"] == "speech" and rows["first_sound"]["labels"] == ["dog", "speech"]
    question, answer = rows["event_time"]["instruction"], rows["event_time"]["target"]
    assert ("dog" in question and "2.0-3.0 s; 4.0-5.0 s" in answer) or ("speech" in question and "0.5-1.0 s" in answer)
    assert list(rows_of(events=(Event("dog"), Event("rain")))) == ["sounds"]  # no times, no questions about them
    together = rows_of(events=(Event("dog", 0.0, 1.0), Event("rain", 0.1, 2.0)))
    assert "first_sound" not in together  # the order is not audible


def test_questions_of_the_corpus_keep_all_answers():
    asked = (Question("Is it rain?", ("no", "yes", "yes"), ("yes", "no")), Question("What?", ("a car", "a bus")))
    rows = rows_of(questions=asked)
    assert [(row["task"], row["target"]) for row in rows.values()] == [("qa", "yes"), ("qa", "a car")]
    assert rows["qa1"]["references"] == ["no", "yes", "yes"] and rows["qa1"]["label"] == "yes"
    assert "label" not in rows["qa2"]


def test_a_label_without_choices_lists_none():
    row = rows_of(labels=(Label("sound_class", "people {sound} marching"),))["sound_class"]
    assert row["label"] == "people {sound} marching" and row["label"] in row["target"] and "labels" not in row


@pytest.mark.parametrize("forms", [MINIASQA, VARIED], ids=["miniasqa", "varied"])
def test_every_answer_contains_its_label(forms):
    for task, pairs in forms.items():
        assert len({question for question, _ in pairs}) == len(pairs) >= 3, task
        assert all(answer.count("{label}") == 1 for _, answer in pairs), task
        assert all(("{sound}" in question) == (task == "event_time") for question, _ in pairs), task
