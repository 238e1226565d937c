"""Readers of real corpora and their prepare commands, on miniatures of each layout and on the corpora themselves."""

import json
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.data.manifest import read_manifest
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from data_prep.clips import Clip, CorpusError, Label, hold_out, read_table
from data_prep.corpora.an4 import read_an4
from data_prep.corpora.esc50 import _PHRASES, read_esc50
from data_prep.corpora.speechocean762 import read_speechocean762
from data_prep.prepare import prepare
from data_prep.questions import questions
from data_prep.text import plain_transcript
from tests.tiny import save_whisper

RECIPES = Path(__file__).parents[2] / "recipes"


def write_audio(path: Path, seconds: float = 0.4, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, int(seconds * rate))
    soundfile.write(path, samples, rate, format={".sph": "NIST"}.get(path.suffix))


@pytest.fixture
def an4(tmp_path) -> Path:
    """Four training speakers and one test speaker, with one utterance each, in three file formats."""
    folder = tmp_path / "an4"
    speakers = {"train": ["fash", "fbbh", "mblw", "mrcb"], "test": ["marh"]}
    (folder / "etc").mkdir(parents=True)
    for part, names in speakers.items():
        folder_name = "an4_clstk" if part == "train" else "an4test_clstk"
        ids = [f"{folder_name}/{name}/an{number}-{name}-b" for number, name in enumerate(names)]
        texts = [f"<s> ERASE C Q NINE </s> ({fileid.split('/')[-1]})" for fileid in ids]
        (folder / f"etc/an4_{part}.fileids").write_text("\n".join(ids) + "\n")
        (folder / f"etc/an4_{part}.transcription").write_text("\n".join(texts) + "\n")
        for fileid, ending in zip(ids, [".wav", ".flac", ".sph", ".wav"]):
            write_audio(folder / "wav" / f"{fileid}{ending}")
    return folder


@pytest.fixture
def esc50(tmp_path) -> Path:
    """Three folds of an ESC-10 class and another class, with two clips of each source recording, at 44.1 kHz."""
    folder = tmp_path / "esc50"
    (folder / "meta").mkdir(parents=True)
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 3):
        for category, esc10 in (("crying_baby", True), ("cow", False)):
            for source in (1, 2):
                for take in "AB":
                    name = f"{fold}-{fold}{source}{esc10:d}-{take}-0.wav"
                    lines.append(f"{name},{fold},0,{category},{esc10},{fold}{source}{esc10:d},{take}")
                    write_audio(folder / "audio" / name, 0.2, 44100)
    (folder / "meta/esc50.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def speechocean(tmp_path) -> Path:
    """Six training and two test speakers with two utterances each; half of the lines have tabs, half have spaces."""
    folder = tmp_path / "speechocean762"
    for part, speakers in {"train": range(6), "test": range(6, 8)}.items():
        tables = {name: [] for name in ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")}
        for speaker in speakers:
            gap = "\t" if speaker % 2 else " "
            name = f"{speaker:04d}"
            tables["spk2age"].append(f"{name}{gap}{8 + speaker}")
            tables["spk2gender"].append(f"{name}{gap}{'mf'[speaker % 2]}")
            for number in range(2):
                file = f"WAVE/SPEAKER{name}/{name}{number}.wav"
                tables["wav.scp"].append(f"{name}{number}{gap}{file}")
                tables["text"].append(f"{name}{number}{gap}I'M TWO EIGHT")
                tables["utt2spk"].append(f"{name}{number}{gap}{name}")
                write_audio(folder / file)
        (folder / part).mkdir()
        for name, lines in tables.items():
            (folder / part / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A Whisper with a few thousand weights."""
    folder = tmp_path_factory.mktemp("encoder")
    save_whisper(folder, mels=80, seconds=30, encoder_layers=4, encoder_ffn_dim=16)
    return folder


def groups(clips: list[Clip]) -> dict[str, set[str]]:
    return {split: {clip.group for clip in clips if clip.split == split} for split in ("train", "valid", "test")}


def test_an4_reader(an4):
    clips = read_an4(an4, valid_share=0.1, seed=1)
    by_split = groups(clips)
    assert by_split["test"] == {"marh"}
    assert {name[0] for name in by_split["valid"]} == {"f", "m"}  # one speaker of each gender
    assert len(by_split["train"]) == 2 and not by_split["train"] & by_split["valid"]
    assert {clip.audio.suffix for clip in clips} == {".wav", ".flac", ".sph"}
    assert all(clip.audio.exists() and clip.text == "erase c q nine" for clip in clips)
    assert all(clip.gender == {"f": "female", "m": "male"}[clip.speaker[0]] for clip in clips)


def test_an4_line_without_id_is_named(an4):
    (an4 / "etc/an4_test.transcription").write_text("ERASE C Q\n")
    with pytest.raises(CorpusError, match=r"an4_test.transcription, line 1: 'ERASE C Q' does not end"):
        read_an4(an4, 0.1, 1)


def test_esc50_reader(esc50):
    clips = read_esc50(esc50, esc10=False, test_fold=3, valid_share=0.1, seed=1)
    by_split = groups(clips)
    assert by_split["test"] == {"310", "311", "320", "321"}
    assert len(by_split["valid"]) == 2 and not by_split["train"] & by_split["valid"]  # a source of each class
    assert {clip.label("sound_class") for clip in clips} == {"crying baby", "cow"} == set(clips[0].labels[0].choices)
    ten = read_esc50(esc50, esc10=True, test_fold=1, valid_share=0.1, seed=1)
    assert {clip.label("sound_class") for clip in ten} == {"crying baby"} and ten[0].dataset == "ESC-10"


def test_esc50_errors_are_named(esc50):
    with pytest.raises(CorpusError, match=r"test_fold is 5, but the clips are of folds \[1, 2, 3\]"):
        read_esc50(esc50, False, 5, 0.1, 1)
    table = esc50 / "meta/esc50.csv"
    text = table.read_text()
    table.write_text(text.replace("cow", "unicorn"))
    with pytest.raises(CorpusError, match="unknown category unicorn"):
        read_esc50(esc50, False, 1, 0.1, 1)
    table.write_text(text.replace("src_file", "source"))
    with pytest.raises(CorpusError, match="no column src_file"):
        read_esc50(esc50, False, 1, 0.1, 1)


def test_esc50_has_three_different_phrases_for_each_class():
    assert len(_PHRASES) == 50
    assert all(len(set(phrases)) == 3 for phrases in _PHRASES.values())


def test_speechocean_reader(speechocean):
    clips = read_speechocean762(speechocean, valid_share=0.2, test_share=None, seed=1)
    by_split = groups(clips)
    assert by_split["test"] == {"0006", "0007"}
    assert len(by_split["valid"]) == 2 and not by_split["train"] & by_split["valid"]
    first = clips[0]
    assert (first.id, first.text, first.age, first.gender) == ("00000", "i'm two eight", 8, "male")


def test_speechocean_holds_out_speakers_where_there_is_no_test_part(speechocean):
    for file in (speechocean / "test").iterdir():
        file.unlink()
    with pytest.raises(CorpusError, match=r"expected test/wav.scp.*openslr.org/101.*--test_share 0.2"):
        read_speechocean762(speechocean, 0.2, None, 1)
    by_split = groups(read_speechocean762(speechocean, 0.2, 0.2, 1))
    assert all(by_split.values()) and sum(map(len, by_split.values())) == 6 == len(set().union(*by_split.values()))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("spk2age", "0000 eight\n", "spk2age: 'eight' of 0000 is not a whole number"),
        ("spk2gender", "0000 x\n", "spk2gender: 'x' of 0000 is neither m nor f"),
        ("utt2spk", "00000 0000\n", "utt2spk: no speaker for 00001"),
        ("text", "00000 A\n00000 B\n", "text, line 2: 00000 occurs twice"),
    ],
)
def test_speechocean_errors_are_named(speechocean, file, text, message):
    (speechocean / "train" / file).write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_speechocean762(speechocean, 0.2, None, 1)


@pytest.mark.parametrize(
    ("read", "arguments", "missing", "source"),
    [
        (read_an4, (0.1, 1), "etc/an4_train.fileids", "speech.cs.cmu.edu"),
        (read_esc50, (False, 5, 0.1, 1), "meta/esc50.csv", "karolpiczak/ESC-50"),
        (read_speechocean762, (0.1, None, 1), "train/wav.scp", "openslr.org/101"),
    ],
)
def test_a_missing_corpus_is_an_error_with_its_source(tmp_path, read, arguments, missing, source):
    with pytest.raises(CorpusError, match=f"{missing}.* in {tmp_path}/nowhere .*no such folder.*{source}"):
        read(tmp_path / "nowhere", *arguments)


@given(
    members=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), min_size=1, max_size=30), seed=st.integers()
)
def test_held_out_groups_are_not_split_and_do_not_depend_on_order(members, seed):
    clips = [
        Clip("d", str(i), Path("x"), "train", f"{name}{group}", text=name) for i, (group, name) in enumerate(members)
    ]

    def split_of(clips: list[Clip]) -> dict[str, str]:
        held = hold_out(clips, 0.3, "valid", seed % 1000, stratum=lambda clip: clip.text)
        pairs = {(clip.group, clip.split) for clip in held}
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    splits = split_of(clips)
    assert split_of(random.Random(seed).sample(clips, len(clips))) == splits
    for name in {clip.text for clip in clips}:
        of_stratum = [split for group, split in splits.items() if group[0] == name]
        assert "train" in of_stratum and ("valid" in of_stratum) == (len(of_stratum) > 1)


def test_tables_keep_spaces_in_values(tmp_path):
    (tmp_path / "wav.scp").write_text("a\tb c.wav\n\nd  e\n")
    assert read_table(tmp_path / "wav.scp") == {"a": "b c.wav", "d": "e"}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [("<s> GO </s> ", "go"), ("A ++BREATH++ B [noise]", "a b"), ("THE(2) IT'S", "the it's"), ("</s>", "")],
)
def test_plain_transcript(raw, plain):
    assert plain_transcript(raw) == plain


def test_questions_vary_and_repeat():
    dog = Label("sound_class", "dog", ("cow", "dog"))
    clips = [
        Clip("d", str(i), Path("x"), "train", "g", text="go", gender="male", age=9, labels=(dog,)) for i in range(40)
    ]
    first = [questions(clip, 1) for clip in clips]
    assert first == [questions(clip, 1) for clip in clips] != [questions(clip, 2) for clip in clips]
    assert [row["task"] for row in first[0]] == ["asr", "gender", "age", "sound_class"]
    for position in range(4):
        assert len({rows[position]["instruction"] for rows in first}) >= 4
    for rows in first:
        assert rows[0]["target"] == "go" and rows[2]["age"] == 9 and "9" in rows[2]["target"]
        assert rows[3]["label"] in rows[3]["target"] and rows[3]["labels"] == ["cow", "dog"]


def run_recipe(name: str, *options: str) -> None:
    """Run what `python prepare.py hparams/prepare.yaml ...` runs."""
    folder = RECIPES / name / "ltu_as"
    runpy.run_path(str(folder / "prepare.py"))["main"]([str(folder / "hparams/prepare.yaml"), *map(str, options)])


def check_prepared(output: Path, encoder_used: bool = True) -> dict[str, list[dict]]:
    rows = {split: read_manifest(output / f"{split}.jsonl") for split in ("train", "valid", "test")}
    assert all(row["split"] == split for split, members in rows.items() for row in members)
    assert all((output / row["audio"]).is_file() for members in rows.values() for row in members)
    if encoder_used:
        store = FeatureStore(output / "features")
        assert set(store.keys()) == {feature_key(row) for members in rows.values() for row in members}
    return rows


def test_prepare_commands_write_manifests_and_features(an4, esc50, speechocean, encoder, tmp_path):
    out = tmp_path / "out"
    common = ["--encoder.source", encoder, "--output_folder"]
    run_recipe("AN4", "--data_folder", an4, *common, out / "an4")
    assert {row["task"] for row in check_prepared(out / "an4")["train"]} == {"asr", "gender"}
    run_recipe("ESC50", "--data_folder", esc50, "--test_fold", "2", "--esc10", "True", *common, out / "esc")
    rows = check_prepared(out / "esc")
    assert {row["task"] for row in rows["test"]} == {"sound_class", "caption"} and len(rows["test"]) == 8
    assert all(len(set(row["references"])) == 5 for row in rows["test"] if row["task"] == "caption")
    run_recipe("SpeechOcean762", "--data_folder", speechocean, *common, out / "so")
    assert {row["task"] for row in check_prepared(out / "so")["test"]} == {"asr", "gender", "age"}

    folders = ["--an4_folder", an4, "--esc50_folder", esc50, "--speechocean762_folder", speechocean, "--test_fold", "2"]
    run_recipe("RealASQA", *folders, *common, out / "all")
    rows = check_prepared(out / "all")
    assert {row["dataset"] for row in rows["valid"]} == {"AN4", "ESC-10", "SpeechOcean762"}
    written = {file.name: file.read_bytes() for file in (out / "all").glob("*.jsonl")}
    run_recipe("RealASQA", *folders, *common, out / "all")
    assert {file.name: file.read_bytes() for file in (out / "all").glob("*.jsonl")} == written


def test_unusable_clips_are_rejected(speechocean, encoder, tmp_path):
    """A missing file, a file that is not audio, one with damaged samples, and an utterance without text."""
    (speechocean / "WAVE/SPEAKER0000/00000.wav").unlink()
    (speechocean / "WAVE/SPEAKER0001/00010.wav").write_text("no audio")
    damaged = np.full(4000, np.nan, dtype=np.float32)
    soundfile.write(speechocean / "WAVE/SPEAKER0002/00020.wav", damaged, 16000, subtype="FLOAT")
    text = speechocean / "train/text"
    text.write_text(text.read_text().replace("00031\tI'M TWO EIGHT", "00031\t"))
    reasons = {"00000": "no such file", "00010": "not readable", "00020": "NaN", "00031": "no transcript"}

    for name, options in {"features": ["--encoder.source", encoder], "none": ["--encoder", "null"]}.items():
        output = tmp_path / name
        options += ["--data_folder", speechocean, "--output_folder", output]
        with pytest.raises(CorpusError, match=r"4 of 16 clips were rejected.*rejected.jsonl"):
            run_recipe("SpeechOcean762", *options)
        assert not (output / "train.jsonl").exists()
        run_recipe("SpeechOcean762", *options, "--max_rejects", "0.5")
        rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
        assert len(rejected) == 4
        for entry in rejected:
            assert reasons[entry["id"]] in entry["reason"] and entry["id"] in entry["audio"]
        rows = check_prepared(output, encoder_used=name == "features")
        kept = {row["id"].split("-")[1] for members in rows.values() for row in members}
        assert len(kept) == 12 and not kept & set(reasons)


def test_empty_split_is_an_error(an4, tmp_path):
    clips = [clip for clip in read_an4(an4, 0.1, 1) if clip.split != "valid"]
    hparams = {"output_folder": tmp_path / "out", "encoder": None, "seed": 1, "max_rejects": 0.0}
    hparams["wordings"] = "varied"
    with pytest.raises(
        CorpusError, match=rf"split valid: the corpus has {len(clips)} clips, of which 0 were rejected\."
    ):
        prepare(clips, hparams, {})
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_real_corpora(real_data, tmp_path):
    """All files are decoded completely and counted, and no speaker is in two splits."""
    folders = {name: real_data / folder for name, folder in (("an4", "an4"), ("esc50", "esc10"))}
    folders["speechocean762"] = real_data / "speechocean762"
    options = [word for name, folder in folders.items() for word in (f"--{name}_folder", folder)]
    options += ["--test_fold", "3", "--test_share", "0.2", "--encoder", "null", "--output_folder", tmp_path]
    run_recipe("RealASQA", *options)
    rows = check_prepared(tmp_path, encoder_used=False)
    assert (tmp_path / "rejected.jsonl").read_text() == ""
    clips = {(row["dataset"], row["audio"]): row["duration"] for members in rows.values() for row in members}
    for dataset, count, seconds in (("AN4", 604, 1644), ("ESC-10", 240, 1200), ("SpeechOcean762", 180, 759)):
        durations = [duration for (name, _), duration in clips.items() if name == dataset]
        assert len(durations) == count and sum(durations) == pytest.approx(seconds, rel=0.005)
    speakers = [{row["speaker"] for row in members if row["speaker"]} for members in rows.values()]
    assert not speakers[0] & speakers[1] and not speakers[0] & speakers[2] and not speakers[1] & speakers[2]
    asr = [row["target"] for members in rows.values() for row in members if row["task"] == "asr"]
    assert set("".join(asr)) <= set("abcdefghijklmnopqrstuvwxyz' ")
