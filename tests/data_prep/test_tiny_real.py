"""The reader of TinyReal on miniatures of its corpora: splits, datasets, tasks, and audio that is made when needed."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_lite.audio.reading import read_audio
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest
from data_prep.clips import Clip, CorpusError
from data_prep.corpora.barista import read_barista
from data_prep.corpora.read_text import read_read_text
from data_prep.corpora.tiny_real import KEYS, _few_labels, read_tiny_real
from data_prep.derived import write_derived
from data_prep.prepare import PREPARE_KEYS, prepare
from data_prep.transcript_questions import transcript_questions
from tests.data_prep import miniatures

DEFAULTS = {name: key.default for name, key in KEYS.items()}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    return miniatures.tiny_real(tmp_path_factory.mktemp("corpora"))


def options(corpora: Path, output: Path, **changes) -> dict:
    folders = {
        f"{name}_folder": str(corpora / name) for name in ("esc50", "an4", "speechocean762", "barista", "read_text")
    }
    librispeech = {"valid": [str(corpora / "librispeech/dev-clean")], "test": [str(corpora / "librispeech/test-other")]}
    values = {
        "test_fold": 5,
        "mixtures": 4,
        "silent_clips": 8,
        "valid_share": 0.2,
        "seed": 1,
        "barista_test_share": 0.3,
    }
    return {
        **DEFAULTS, **folders, **values, "librispeech_folders": librispeech, "output_folder": str(output), **changes
    }  # fmt: skip


def read(corpora: Path, output: Path, **changes) -> list[Clip]:
    return list(read_tiny_real(**options(corpora, output, **changes)))


def test_no_recording_is_in_two_splits_and_only_training_clips_are_derived(corpora, tmp_path):
    clips = read(corpora, tmp_path, joined_share=1.0, perturbed_share=1.0)
    groups = {split: {clip.group for clip in clips if clip.split == split} for split in ("train", "valid", "test")}
    assert not groups["train"] & groups["valid"] and not groups["test"] & (groups["train"] | groups["valid"])
    assert len({(clip.dataset, clip.id) for clip in clips}) == len(clips)
    assert {clip.split for clip in clips if clip.render and clip.dataset != "Silence"} == {"train"}
    kinds = {clip.id.split("-")[0] for clip in clips if clip.render}
    assert kinds == {"joined", "perturbed", "mixed", "silence"}
    assert {clip.dataset for clip in clips if clip.split == "test"} == {
        "AN4", "ESC-10", "Barista", "SpeechOcean762 adults", "LibriSpeech", "Silence",
    }  # fmt: skip


def test_ages_and_tasks_of_the_datasets(corpora, tmp_path):
    clips = read(corpora, tmp_path)
    ages = {clip.dataset: clip.age for clip in clips if clip.age is not None and clip.render is None}
    assert ages["SpeechOcean762 children"] < 18 <= ages["SpeechOcean762 adults"]
    for clip in clips:
        labels = {label.task: label.label for label in clip.labels}
        assert (clip.text is not None) == (clip.dataset not in ("ESC-10", "Silence", "Barista"))
        assert labels.get("order", "drink: latte") == "drink: latte"
        if clip.dataset in ("ESC-10", "Silence") and not clip.id.startswith("mixed"):
            assert labels["no_speech"] == "[no speech]"
        assert not (clip.dataset == "LibriSpeech" and clip.questions)  # for plain transcripts only
        assert clip.text is None or clip.text == clip.text.lower()


def test_read_sentences_alone_are_few_and_joined_ones_stay(corpora, tmp_path):
    def count(share):
        clips = read(corpora, tmp_path, joined_share=1.0, perturbed_share=0.0, single_share=share)
        read_text = [clip for clip in clips if clip.dataset == "ReadText" and clip.split == "train"]
        others = [clip for clip in clips if clip.dataset != "ReadText" or clip.split != "train"]
        joined = [clip for clip in read_text if clip.id.startswith("joined")]
        return len(read_text) - len(joined), len(joined), len(others)

    none, every = count(0.0), count(1.0)
    assert none[0] == 0 < every[0] and none[1:] == every[1:] and none[1] > 0


def test_few_joined_clips_keep_gender_and_age():
    speakers = [Clip("AN4", str(number), Path("a.flac"), "train", "s", gender="male", age=30) for number in range(500)]
    kept = [_few_labels(clip, seed=1) for clip in speakers]
    labelled = [clip for clip in kept if clip.gender is not None]
    assert 60 < len(labelled) < 140 and all(clip.age == 30 for clip in labelled)
    assert all(clip.age is None for clip in kept if clip.gender is None)


def test_shares_decide_how_much_is_derived(corpora, tmp_path):
    nothing = {"joined_share": 0.0, "perturbed_share": 0.0, "label_copies": 0.0, "mixtures": 0, "silent_clips": 0}
    plain = read(corpora, tmp_path, **nothing)
    assert not [clip for clip in plain if clip.render and clip.split == "train"]
    assert len(read(corpora, tmp_path, **nothing | {"read_text_share": 0.5})) < len(plain)
    perturbed = [clip for clip in read(corpora, tmp_path, **nothing | {"perturbed_share": 2.0}) if clip.render]
    speech = [clip for clip in plain if clip.split == "train" and clip.text]
    assert len([clip for clip in perturbed if clip.split == "train"]) == 2 * len(speech)


def test_prepare_writes_derived_audio_once_and_debug_only_what_it_keeps(corpora, tmp_path):
    hparams = {name: key.default for name, key in PREPARE_KEYS.items()} | {"wordings": "varied", "encoder": None}

    def run(output: Path, debug: bool) -> list[Path]:
        values = options(corpora, output)
        prepare(read_tiny_real(**values), hparams | values, {"debug": debug})
        return sorted((output / "derived").rglob("*.flac"))

    few = run(tmp_path / "few", debug=True)
    files = run(tmp_path / "all", debug=False)
    assert len(few) <= 3 * 8 < len(files)
    rows = [row for split in ("train", "valid", "test") for row in read_manifest(tmp_path / f"all/{split}.jsonl")]
    used = {(tmp_path / "all" / row["audio"]).resolve() for row in rows if "derived" in row["audio"]}
    assert used == {file.resolve() for file in files}
    times = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    assert run(tmp_path / "all", debug=False) == files
    assert [file for file in files if file.stat().st_mtime_ns != times[file]] == files[:1]
    mixed = next(row for row in rows if "mixed" in row["id"])
    assert mixed["task"] == "caption" and len(mixed["references"]) == 3


def test_a_source_that_cannot_be_read_rejects_what_is_made_from_it(corpora, tmp_path):
    folder = miniatures.tiny_real(tmp_path / "corpora")
    broken = folder / "read_text/clips/3.ogg"
    broken.write_bytes(b"nothing")
    hparams = {name: key.default for name, key in PREPARE_KEYS.items()}
    hparams |= {"wordings": "varied", "encoder": None, "max_rejects": 0.5}
    values = options(folder, tmp_path / "data", perturbed_share=1.0, joined_share=1.0, single_share=1.0)
    assert prepare(read_tiny_real(**values), hparams | values, {}) == 3
    rejected = [json.loads(line) for line in (tmp_path / "data/rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 2 and rejected[0]["id"] == "emma-3"  # the clip and its perturbed copy, no joined one
    assert all("3.ogg" in entry["reason"] for entry in rejected)


def test_an_unknown_split_of_librispeech_is_refused(corpora, tmp_path):
    with pytest.raises(ConfigError, match="unknown split 'dev'; use train, valid and test"):
        read(corpora, tmp_path, librispeech_folders={"dev": []})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON object with audio and slots"),
        ('{"audio": "a.ogg"}', "line 2: no JSON object with audio and slots"),
        ('{"audio": "a.ogg", "slots": {}}', r"line 2: slots are \[\]"),
        ('{"audio": "a.ogg", "slots": {"cup": "paper"}}', r"line 2: slots are \['cup'\], expected some of"),
    ],
)
def test_a_bad_line_of_barista_is_named(tmp_path, line, message):
    (tmp_path / "audio").mkdir()
    (tmp_path / "train.jsonl").write_text('{"audio": "a.ogg", "slots": {"size": "small"}}\n' + line)
    with pytest.raises(CorpusError, match=message):
        list(read_barista(tmp_path, 0.1, 0.1, seed=1))


def test_read_text_needs_three_columns_and_keeps_its_splits_when_it_grows(tmp_path):
    lines = [f"clips/{number}.ogg\temma\tSentence, number {number}" for number in range(200)]
    table = tmp_path / "speech.tsv"
    table.write_text("\n".join(lines[:100]))
    before = {clip.id: clip.split for clip in read_read_text(tmp_path, 0.2, seed=1)}
    table.write_text("\n".join(lines))
    after = {clip.id: clip.split for clip in read_read_text(tmp_path, 0.2, seed=1)}
    assert len(after) == 200 and before.items() <= after.items() and 20 < list(after.values()).count("valid") < 60
    half = {clip.id for clip in read_read_text(tmp_path, 0.2, seed=1, share=0.5)}
    quarter = {clip.id for clip in read_read_text(tmp_path, 0.2, seed=1, share=0.25)}
    assert quarter < half < after.keys() and 70 < len(half) < 130
    table.write_text("clips/1.ogg\temma\n")
    with pytest.raises(CorpusError, match="line 1: 2 of 3 columns"):
        list(read_read_text(tmp_path, 0.2, seed=1))


def test_questions_about_words_are_answered_by_the_transcript():
    words = "the cat sat on a mat with the dog".split()
    for number in range(100):
        clip = Clip("d", str(number), Path("a"), "train", "s", text="the old cat sat down")
        asked = {question.task: question for question in transcript_questions(clip, words, seed=1, count=4)}
        assert asked.keys() == {"word_said", "word_count", "word_place", "spelling"}
        word = asked["word_said"].question.split('"')[1]
        assert asked["word_said"].answers == ("yes" if word in clip.text.split() else "no",)
        assert asked["word_count"].answers == ("5",)
        places = dict(zip("first second third fourth fifth last".split(), "the old cat sat down down".split()))
        place = next(place for place in places if place in asked["word_place"].question.split())
        assert asked["word_place"].answers == (places[place],)
        place = next(place for place in places if place in asked["spelling"].question.split())
        assert asked["spelling"].answers == (" ".join(places[place]),)
    long = Clip("d", "long", Path("a"), "train", "s", text="a " * 20)
    assert {question.task for question in transcript_questions(long, words, 1, 4)} == {"word_said", "word_place"}
    assert transcript_questions(Clip("d", "none", Path("a"), "train", "s"), words, 1, 4) == ()


def test_yes_and_no_are_balanced_and_depend_on_the_clip_only():
    words = "one two three four five six seven eight nine ten".split()

    def answers(seed: int) -> list[str]:
        clips = [
            Clip("d", str(n), Path("a"), "train", "s", text=words[n % 10] + " " + words[n // 7 % 10])
            for n in range(200)
        ]
        asked = [transcript_questions(clip, words, seed, 4) for clip in clips]
        return [question.answers[0] for group in asked for question in group if question.task == "word_said"]

    assert answers(1) == answers(1) != answers(2)
    assert 70 < answers(1).count("yes") < 130


def test_silence_is_silent_after_it_was_written(corpora, tmp_path):
    silent = [clip for clip in read(corpora, tmp_path) if clip.dataset == "Silence" and "silence" in clip.captions[0]]
    assert silent
    write_derived(silent[0])
    assert not np.any(read_audio(silent[0].audio).numpy())
    assert 1.0 <= soundfile.info(silent[0].audio).duration <= 15.0
