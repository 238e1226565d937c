"""The quick starts: the selection of the shipped corpus, all steps on tiny models, and the choice of quickstart.sh."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_lite.config.errors import UserError
from audiolm_lite.deploy.backends import make_backend
from data_prep.clips import CorpusError
from data_prep.corpora.an4 import read_an4
from data_prep.corpora.esc50 import read_esc50
from data_prep.corpora.speechocean762 import read_speechocean762
from tests.data_prep import miniatures
from tests.tiny import save_recognizer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/TinyReal/ltu_as"
SHIPPED = RECIPE / "corpus"
SPEAKERS = 40  # of the miniature of SpeechOcean762
# Scores of which the last line has one with and one without audio.
SCORES = ("wer", "cer", "sound_accuracy", "gender_accuracy", "emotion_accuracy", "qa_accuracy", "age_mae", "cider_d")


def load(name, folder=RECIPE):
    spec = importlib.util.spec_from_file_location(f"tiny_real_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Miniatures of the three corpora, with the licences that copies of AN4 and ESC-50 have."""
    folder = tmp_path_factory.mktemp("corpora")
    for part, speakers in {"train": ("fash", "fbbh", "mblw", "mrcb"), "test": ("marh",)}.items():
        names = [f"an4_{part}/{speaker}/an{number}-{speaker}-b" for speaker in speakers for number in range(6)]
        miniatures.write_lines(folder / f"an4/etc/an4_{part}.fileids", *names)
        texts = [f"<s> GO UP </s> ({Path(name).name})" for name in names]
        miniatures.write_lines(folder / f"an4/etc/an4_{part}.transcription", *texts)
        for name in names:
            miniatures.write_audio(folder / f"an4/wav/{name}.wav", 1.0)
    (folder / "an4/LICENSE").write_text("AN4 License Terms")

    rows, authors = ["filename,fold,target,category,esc10,src_file,take"], []
    for fold in (1, 2, 3, 4):
        for kind, category in enumerate(("dog", "rain")):
            for take in "AB":
                recording = f"{fold}-{fold}{kind}{take}-A"
                rows.append(f"{recording}-{kind}.wav,{fold},{kind},{category},True,{fold}{kind}{take},A")
                licence = "CC-Sampling+" if recording == "1-10A-A" else "CC0" if take == "A" else "CC-BY"
                authors.append(f"- [{recording}.ogg]: clip derived from a [1].wav (http://x/) by someone [{licence}]")
                miniatures.write_audio(folder / f"esc50/audio/{recording}-{kind}.wav", 1.0, 44100)
    miniatures.write_lines(folder / "esc50/meta/esc50.csv", *rows)
    miniatures.write_lines(folder / "esc50/LICENSE", "101 - Dog:", *authors)

    ocean, names = folder / "speechocean762", [f"{speaker:04d}{n:02d}" for speaker in range(SPEAKERS) for n in range(3)]
    miniatures.write_lines(ocean / "train/wav.scp", *(f"{name} WAVE/{name}.wav" for name in names))
    miniatures.write_lines(ocean / "train/text", *(f"{name} I AM" for name in names))
    miniatures.write_lines(ocean / "train/utt2spk", *(f"{name} {name[:4]}" for name in names))
    miniatures.write_lines(ocean / "train/spk2age", *(f"{n:04d} {6 + n}" for n in range(SPEAKERS)))
    miniatures.write_lines(ocean / "train/spk2gender", *(f"{n:04d} {'mf'[n % 2]}" for n in range(SPEAKERS)))
    for name in names:
        miniatures.write_audio(ocean / f"WAVE/{name}.wav", 1.0)
    return folder


def options_of(corpora):
    return [word for name in ("an4", "esc50", "speechocean762") for word in (f"--{name}", str(corpora / name))]


@pytest.fixture(scope="module")
def selected(corpora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("selected") / "corpus"
    load("select_corpus").main([str(folder), *options_of(corpora)])
    return folder


def clips_of(folder):
    return [
        *read_an4(folder / "an4", 0.05, 1986),
        *read_esc50(folder / "esc10", True, 3, 0.05, 1986),
        *read_speechocean762(folder / "speechocean762", 0.05, None, 1986),
    ]


def test_selection_is_read_like_the_complete_corpora(selected):
    """Texts, labels, ages and genders are there, and all audio is mono Opus at 16 kHz."""
    splits = miniatures.by_split(clips_of(selected))
    counts = {split: {clip.dataset for clip in members} for split, members in splits.items()}
    assert counts == dict.fromkeys(("train", "valid", "test"), {"AN4", "ESC-10", "SpeechOcean762"})
    for clip in (clip for members in splits.values() for clip in members):
        info = soundfile.info(clip.audio)
        assert (info.subtype, info.channels, info.samplerate) == ("OPUS", 1, 16000)
        assert clip.text or clip.labels
        assert clip.dataset != "SpeechOcean762" or (clip.age is not None and clip.gender)
    assert "{" not in (selected / "LICENSES.md").read_text()
    assert (selected / "an4/LICENSE").read_text() == "AN4 License Terms"


def test_selection_trains_on_no_speaker_that_the_complete_recipe_holds_out(corpora, selected):
    complete = read_speechocean762(corpora / "speechocean762", 0.05, 0.1, 1986)
    split_of = {clip.speaker: clip.split for clip in complete}
    chosen = {clip.speaker: clip.split for clip in read_speechocean762(selected / "speechocean762", 0.05, None, 1986)}
    assert {split_of[speaker] for speaker, split in chosen.items() if split == "test"} == {"test"}
    assert {split_of[speaker] for speaker, split in chosen.items() if split != "test"} == {"train"}
    ages = {clip.speaker: clip.age for clip in complete}
    training = [ages[speaker] for speaker, split in chosen.items() if split != "test"]
    assert min(training) < 18 <= max(training)


def test_selection_keeps_all_of_the_test_part_and_some_of_each_training_speaker_of_an4(selected):
    clips = read_an4(selected / "an4", 0.05, 1986)
    assert len([clip for clip in clips if clip.split == "test"]) == 6
    training = [clip.speaker for clip in clips if clip.split != "test"]
    assert sorted(set(training)) == ["fash", "fbbh", "mblw", "mrcb"] and len(training) == 16


def test_selection_leaves_out_recordings_that_are_not_free_and_names_the_authors_of_the_others(selected):
    with (selected / "esc10/meta/esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["fold"] for row in rows} == {"1", "2", "3"} and len(rows) == 11
    authors = (selected / "esc10/LICENSE").read_text().splitlines()
    assert len(authors) == 11 and not any("1-10A-A" in line for line in authors)


def test_selection_repeats_itself_and_replaces_nothing(corpora, selected, tmp_path):
    select = load("select_corpus")
    select.main([str(tmp_path / "again"), *options_of(corpora)])
    names = [
        sorted(file.relative_to(folder) for file in folder.rglob("*")) for folder in (selected, tmp_path / "again")
    ]
    assert names[0] == names[1]
    with pytest.raises(UserError, match="exists"):
        select.main([str(tmp_path / "again"), *options_of(corpora)])


def test_selection_needs_the_authors_and_leaves_nothing_behind(corpora, tmp_path):
    shutil.copytree(corpora, tmp_path / "corpora")
    (tmp_path / "corpora/esc50/LICENSE").unlink()
    with pytest.raises(CorpusError, match="LICENSE"):
        load("select_corpus").main([str(tmp_path / "corpus"), *options_of(tmp_path / "corpora")])
    assert [path.name for path in tmp_path.iterdir()] == ["corpora"]


def test_an_opus_file_is_copied_and_not_encoded_again(tmp_path):
    select = load("select_corpus")
    soundfile.write(tmp_path / "a.ogg", np.zeros(16000), 16000, format="OGG", subtype="OPUS")
    select.write_opus(tmp_path / "a.ogg", tmp_path / "out/a.ogg")
    assert (tmp_path / "out/a.ogg").read_bytes() == (tmp_path / "a.ogg").read_bytes()


def test_shipped_corpus_is_small_and_complete():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 30e6
    clips = clips_of(SHIPPED)
    assert all(clip.audio.is_file() for clip in clips)
    assert {clip.audio for clip in clips} == {file for file in files if file.suffix == ".ogg"}
    ages = {clip.speaker: clip.age for clip in clips if clip.dataset == "SpeechOcean762" and clip.split == "test"}
    assert min(ages.values()) < 18 <= max(ages.values())


@pytest.fixture
def recipe(tmp_path, selected, tiny, monkeypatch):
    """A copy of the recipe with a miniature corpus and tiny backbones, in which the process works."""
    folder = tmp_path / "recipes/TinyReal/ltu_as"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("corpus", "data", "results", "__pycache__"))
    (tmp_path / "hparams").symlink_to(ROOT / "hparams")
    (folder / "corpus").symlink_to(selected)
    save_recognizer(folder / "whisper-tiny.en", num_mel_bins=80, max_source_positions=1500)
    (folder / "smollm2-135m-instruct").symlink_to(tiny / "llama")
    monkeypatch.chdir(folder)
    return folder


def test_real_quick_start_runs_from_scratch_and_from_a_released_model(recipe, capsys, monkeypatch):
    quick_start = load("quickstart", recipe)
    # to compile takes too long for a test
    monkeypatch.setattr(quick_start.latency, "make_backend", lambda name, *sizes: make_backend("eager", *sizes))
    short = ["--debug", "--device", "cpu"]
    recording = str(next((recipe / "corpus/an4/wav").rglob("*.ogg")))
    quick_start.main([recording, "--from_scratch", *short])
    printed = capsys.readouterr().out
    assert f"{recording}\n  from the audio alone:" in printed
    assert "Word error rates of the same clips: " in printed
    check_last_line(printed, real=True)
    assert (recipe / "results/from_scratch/report.html").is_file()

    (recipe / "tiny").symlink_to("results/from_scratch/stage_3")  # has precedence over the released model
    quick_start.main(short)
    check_last_line(capsys.readouterr().out, real=True)
    assert "adapter_alone" in json.loads((recipe / "results/evaluation/metrics.json").read_text())["controls"]


def check_last_line(printed, real):
    line = json.loads(printed.splitlines()[-1])
    assert {name for score in SCORES for name in (score, f"{score}_no_audio")} <= line.keys()
    assert line["real"] is real and line["seconds"] > 0
    for name in (
        "wer",
        "wer_no_audio",
        "wer_with_transcript",
        "wer_adapter_alone",
        "wer_whisper",
        "ttft_ms",
        "tpot_ms",
    ):
        assert line[name] >= 0, name
    assert line["token_match"] == 1


# Stands for the installed Python: logs what it would run, and fails to fetch where it is told to.
PYTHON = """#!/usr/bin/env bash
echo "$(basename "$(dirname "$PWD")") $*" >> "$LOG"
case "$*" in *fetch*) exit "$FETCH" ;; *) echo '{"real": null}' ;; esac
"""


def quick_start(tmp_path, *arguments, fetch=0):
    """Run quickstart.sh with a stand-in for Python; returns the process and what was run."""
    folder = tmp_path / "project"
    for name in ("MiniASQA", "TinyReal"):
        (folder / "recipes" / name / "ltu_as").mkdir(parents=True, exist_ok=True)
    (folder / "tools").mkdir(exist_ok=True)
    shutil.copy(ROOT / "quickstart.sh", folder)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    environment = 'say() { printf "%s\\n" "$*" >&2; }\nuse_environment() { PYTHON="$ROOT/python"; }\nROOT="$PWD"\n'
    (folder / "tools/environment.sh").write_text(environment)
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    variables = {**os.environ, "LOG": str(log), "FETCH": str(fetch)}
    command = ["bash", str(folder / "quickstart.sh"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    return done, log.read_text().splitlines() if log.exists() else []


needs_bash = pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_recordings_reach_the_real_quick_start_with_their_full_paths(tmp_path):
    (tmp_path / "my speech.wav").touch()
    done, ran = quick_start(tmp_path, "--fresh", "my speech.wav", "--device", "cpu")
    assert done.returncode == 0
    assert ran[0].endswith("-m audiolm_lite fetch whisper-tiny.en smollm2-135m-instruct")
    assert ran[1] == f"TinyReal quickstart.py {tmp_path}/my speech.wav --fresh --device cpu"


@needs_bash
def test_without_weights_the_synthetic_quick_start_runs_and_says_so(tmp_path):
    (tmp_path / "my.wav").touch()
    done, ran = quick_start(tmp_path, "my.wav", "--from_scratch", "--fresh", fetch=1)
    assert done.returncode == 0
    assert ran[-1] == "MiniASQA quickstart.py --fresh"
    assert "could not be fetched" in done.stderr and "nothing about real audio" in done.stderr


@needs_bash
def test_an_interrupted_fetch_ends_the_quick_start(tmp_path):
    done, ran = quick_start(tmp_path, fetch=130)
    assert done.returncode == 130 and len(ran) == 1


@needs_bash
def test_synthetic_quick_start_fetches_nothing(tmp_path):
    done, ran = quick_start(tmp_path, "--synthetic", "--processes", "1")
    assert ran == ["MiniASQA quickstart.py --processes 1"] and done.stderr == ""


@needs_bash
def test_a_recording_that_is_missing_is_an_error_before_anything_runs(tmp_path):
    done, ran = quick_start(tmp_path, "absent.wav")
    assert done.returncode == 1 and "no such file: absent.wav" in done.stderr and ran == []
