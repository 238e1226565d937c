"""Manifests of other toolkits: a round trip keeps what the format can store, and reports what it cannot store."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolm_lite.audio.reading import read_audio
from data_prep.formats import FormatError, Report, format_names, load_format, writable_formats
from tests.data_prep.conftest import RATE, SECONDS

DEFAULTS = {"dataset": "set", "split": "train", "task": "asr", "instruction": "What is said?", "language": "en"}
WRITABLE = [("huggingface", ""), ("kaldi", ""), ("lhotse", ".jsonl"), ("lhotse", ".jsonl.gz"), ("manifest", ".jsonl"),
            ("nemo", ".json"), ("speechbrain", ".csv"), ("speechbrain", ".json")]  # fmt: skip
# Formats that are only read: how the test writes a list of entries.
READ_ONLY = {
    "openasqa": lambda entries: json.dumps(entries),
    "salmonn": lambda entries: json.dumps({"annotation": entries}),
    "slam": lambda entries: "".join(json.dumps(entry) + "\n" for entry in entries),
}
# Formats of text only, and of conversations: test_formats_published.py.
OTHERS = {"common_voice", "csv", "messages"}

ROW = {"id": "a", "audio": "wav/a.wav", "task": "asr", "instruction": "What?", "target": "one, two", "dataset": "d",
       "split": "train", "start": 0.0, "duration": None, "language": "en", "speaker": "s1",
       "references": ["one, two"]}  # fmt: skip


def write(name: str, rows: list[dict], path: Path) -> Report:
    report = Report()
    load_format(name).write(iter(rows), path, report)
    return report


def read(name: str, path: Path, **options) -> tuple[list[dict], Report]:
    report = Report()
    if name != "manifest":
        options["defaults"] = DEFAULTS
    return list(load_format(name).read(path, report, **options)), report


TEXT = st.text(
    st.one_of(st.sampled_from("aé한\"'\\,;\n\t {}[]$1\u2028\x85\x0b|#=:"), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
FILLED = TEXT.filter(str.strip)
VALUE = st.one_of(TEXT, st.integers(-9, 9), st.booleans(), st.floats(-9, 9), st.lists(TEXT, max_size=2),
                  st.dictionaries(TEXT, TEXT, max_size=2))  # fmt: skip


# Some of them are the names of other fields in one of the formats.
FURTHER = ["gender", "labels", "age", "transcript", "text", "source", "wav", "wrd", "path", "answer", "input", "key",
           "ID", "stop", "custom", "offset", "Q"]  # fmt: skip


@st.composite
def corpora(draw) -> list[dict]:
    rows = []
    for identifier in draw(st.lists(FILLED, min_size=1, max_size=4, unique=True)):
        target = draw(TEXT)
        start = draw(st.sampled_from([0.0, 0.0, 0.5, 1 / 3]))
        duration = draw(st.sampled_from([None, SECONDS - start, 1.1, 2 / 3]))
        row = {
            **{name: draw(FILLED) for name in ("task", "dataset", "split")},
            **{name: draw(TEXT) for name in ("instruction", "language", "speaker")},
            "id": identifier, "audio": draw(st.sampled_from(["wav/a.wav", "wav/b c.wav"])), "target": target,
            "start": start, "duration": duration,
            "references": draw(st.one_of(st.just([target]), st.lists(TEXT, min_size=1, max_size=2))),
            **draw(st.dictionaries(st.sampled_from(FURTHER), VALUE, max_size=3)),
        }  # fmt: skip
        rows.append(row)
    return rows


def same_time(row: dict, again: dict) -> None:
    """Segments are equal to a sample; null and the file's length mean the same."""
    length = SECONDS - row["start"]
    assert abs(row["start"] - again["start"]) <= 0.5001 / RATE
    assert abs((row["duration"] or length) - (again["duration"] or SECONDS - again["start"])) <= 1.0001 / RATE


def is_segment(row: dict) -> bool:
    return row["start"] > 0 or (row["duration"] or SECONDS) != SECONDS


@pytest.mark.parametrize(("name", "ending"), WRITABLE)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=corpora())
def test_round_trip_loses_nothing_that_is_not_reported(name, ending, folder, tmp_path_factory, rows):
    """Every row is read back or is in the report; every field is read back unchanged or is counted there."""
    path = tmp_path_factory.mktemp(name) / f"manifest{ending}"
    rows = [{**row, "audio": str(folder / row["audio"])} for row in rows]
    report = write(name, rows, path)
    refused = {entry["id"]: entry["reason"] for entry in report.rejected}
    kept = {row["id"]: row for row in rows if row["id"] not in refused}
    assert report.written == len(kept)
    for row in rows:  # rejects have one of these reasons
        if row["id"] in refused:
            reason = refused[row["id"]]
            assert (
                (name == "huggingface" and is_segment(row) and "part of its file" in reason)
                or (name == "huggingface" and "split" in reason)
                or (name == "kaldi" and ("spaces" in reason or "line break" in reason))
                or (ending == ".csv" and "placeholder" in reason)
            ), (row, reason)
    if not kept and name == "huggingface":
        return
    back, reading = read(name, path)
    assert reading.rejected == []
    # Counted as "target (spaces around it)" is a loss of "target".
    lost = {field.partition(" ")[0] for field in report.lost}
    lost |= {"references"} if "target" in lost else set()
    assert {row["id"] for row in back} == set(kept)
    for again in back:
        row = kept[again["id"]]
        assert again.keys() - row.keys() <= {"start", "duration"}
        for field in row.keys() - lost - {"start", "duration", "audio"}:
            assert (
                again[field] == row[field]
                and type(again[field]) is type(row[field])
                or (name == "huggingface" and isinstance(row[field], int | float) and again[field] == row[field])
            ), field
        if name == "huggingface":
            assert (path / again["audio"]).read_bytes() == Path(row["audio"]).read_bytes()
        else:
            assert again["audio"] == row["audio"]
        if name in ("manifest", "nemo"):
            assert (again["start"], again["duration"]) == (row["start"], row["duration"])
        else:
            same_time(row, again)


@pytest.mark.parametrize("name", READ_ONLY)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=corpora())
def test_formats_that_are_only_read_keep_every_field(name, folder, tmp_path_factory, rows):
    """Fields under the format's own names become those of the manifest, and all other fields keep their names."""
    names = {field: sources[0] for field, sources in load_format(name).NAMES.items()}
    rows = [{**row, "audio": str(folder / row["audio"])} for row in rows]
    # A field of the row with one of the format's names would stand twice in the entry.
    rows = [{field: row[field] for field in row.keys() - (set(names.values()) - names.keys())} for row in rows]
    path = tmp_path_factory.mktemp(name) / "manifest.json"
    entries = [{names.get(field, field): value for field, value in row.items()} for row in rows]
    path.write_text(READ_ONLY[name](entries), encoding="utf-8")
    back, report = read(name, path)
    assert report.rejected == [] and not report.lost and report.read == len(rows)
    for row, again in zip(rows, back, strict=True):
        if row.get("transcript") == "":  # no transcript, in Open-ASQA
            assert name != "openasqa" or "transcript" not in again
            row = {field: row[field] for field in row.keys() & again.keys()}
        assert again == row


def test_every_format_is_in_a_test_above():
    assert {name for name, _ in WRITABLE} == set(writable_formats())
    assert {*READ_ONLY, *OTHERS} == set(format_names()) - set(writable_formats())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nemo", '{"audio_filepath": "a.wav", "offset": 1.5, "duration": 2, "context": "Q", "text": "t"}',
         {"audio": "a.wav", "start": 1.5, "duration": 2.0, "instruction": "Q", "target": "t", "id": "set-1"}),
        ("nemo", '{"audio_filepath": "a.wav", "offset": null, "duration": null, "question": "Q", "answer": "t"}',
         {"start": 0.0, "duration": None, "instruction": "Q", "target": "t"}),
        ("nemo", '{"audio_filepath": "a.wav", "text": "t", "source_lang": "en", "target_lang": "de"}',
         {"target": "t", "language": "de", "source_lang": "en"}),
        ("slam", '{"key": "k", "source": "a.wav", "target": "t", "prompt": "P"}',
         {"id": "k", "audio": "a.wav", "target": "t", "instruction": "P"}),
        ("slam", '{"key": "k", "source": "a.wav", "target": "t"}', {"instruction": "What is said?", "task": "asr"}),
        ("salmonn", '{"annotation": [{"path": "a.wav", "text": "t", "task": "QA", "Q": "why?"}]}',
         {"audio": "a.wav", "target": "t", "task": "QA", "instruction": "why?"}),
        ("openasqa",
         '[{"instruction": "I", "input": "words", "output": "t", "audio_id": "a.wav", "dataset": "D", "task": "T"}]',
         {"audio": "a.wav", "target": "t", "task": "T", "dataset": "D", "instruction": "I", "transcript": "words"}),
        ("speechbrain", '{"u1": {"wav": "{data_root}/a.wav", "length": 2.5, "words": "{{t}}"}}',
         {"id": "u1", "audio": "/corpus/a.wav", "target": "{t}", "length": 2.5}),
    ],
)  # fmt: skip
def test_documented_examples_are_read(name, content, expected, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(content, encoding="utf-8")
    (row,), report = read(name, path, **({"data_root": "/corpus"} if name == "speechbrain" else {}))
    assert report.rejected == [] and expected.items() <= row.items()


def test_bad_lines_are_rejected_with_their_number(tmp_path):
    path = tmp_path / "m.json"
    good = b'{"audio_filepath": "a.wav", "text": "t"}\r\n'
    bad = [b"{", b"[1]", b'{"audio_filepath": "a.wav"}', b'{"audio_filepath": "a.wav", "text": "\xff"}',
           b'{"audio_filepath": "a.wav", "text": "t", "duration": NaN}', b'{"audio_filepath": 3, "text": "t"}',
           b'{"audio_filepath": "a.wav", "text": "t", "offset": -1}', b'{"text": "a", "text": "b"}',
           b'{"audio_filepath": "a.wav", "text": "\\ud800"}']  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n" + b"\n".join(bad) + b"\n" + good)
    rows, report = read("nemo", path)
    assert [row["id"] for row in rows] == ["set-1", f"set-{len(bad) + 3}"]
    assert [entry["line"] for entry in report.rejected] == list(range(3, len(bad) + 3))
    reasons = [entry["reason"] for entry in report.rejected]
    for part in ("not JSON", "not an object", '"target": missing', "utf-8", "NaN", '"audio": 3', '"start": -1',
                 "given twice", "surrogate"):  # fmt: skip
        assert any(part in reason for reason in reasons), (part, reasons)


def test_cut_off_gzip_is_an_error_that_says_where(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 100000)[:-20])
    with pytest.raises(FormatError, match="not readable after line"):
        read("lhotse", path)


@pytest.mark.parametrize("name", sorted(set(format_names()) - {"kaldi", "huggingface", "manifest"}))
def test_files_of_another_kind_are_refused_by_name(name, tmp_path):
    path = tmp_path / "m.json"
    path.write_text('"text"', encoding="utf-8")
    try:
        rows, report = read(name, path)
        assert rows == [] and len(report.rejected) == 1
    except FormatError as error:
        assert str(path) in str(error)
    with pytest.raises(FormatError, match="missing.json"):
        read(name, tmp_path / "missing.json")


def kaldi_folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name.replace("wav_scp", "wav.scp")).write_text(text, encoding="utf-8")
    return path


def test_kaldi_commands_are_refused_and_never_executed(tmp_path):
    """The command would create a file."""
    mark = tmp_path / "ran"
    scp = f"u1 a.wav\nu2 touch {mark} |\nu3 | touch {mark}\nu4 raw.ark:17\n"
    folder = kaldi_folder(tmp_path / "train", wav_scp=scp, text="u1 a\nu2 b\nu3 c\nu4 d\nu5 e\n")
    rows, report = read("kaldi", folder)
    assert [row["id"] for row in rows] == ["u1"] and not mark.exists()
    reasons = {entry["utterance"]: entry["reason"] for entry in report.rejected}
    assert "commands are never executed" in reasons["u2"] and "commands are never executed" in reasons["u3"]
    assert "archive" in reasons["u4"] and "not in wav.scp" in reasons["u5"]


def test_kaldi_segments_speakers_and_the_end_of_a_recording(tmp_path):
    folder = kaldi_folder(
        tmp_path / "train",
        wav_scp="rec\twav/a b.wav\n",
        segments="u1 rec 0.1 1.25\nu2 rec 1.25 -1\nu3 rec x 1\nu4 other 0 1\n",
        text="u1  two  words \nu2\nu3 a\nu4 b\n",
        utt2spk="u1 s1\nu2 u2\n",
        spk2gender="s1 f\n",
        utt2lang="u1 ko\n",
    )
    rows, report = read("kaldi", folder)
    first, second = rows
    assert (first["audio"], first["start"], first["duration"]) == ("wav/a b.wav", 0.1, 1.15)
    assert (first["target"], first["speaker"], first["gender"], first["language"]) == (
        "two  words",
        "s1",
        "female",
        "ko",
    )
    assert (second["start"], second["duration"], second["speaker"], second["target"]) == (1.25, None, "", "")
    assert {entry["utterance"] for entry in report.rejected} == {"u3", "u4"}


def test_kaldi_files_are_sorted_and_complete(folder, tmp_path):
    rows = [{**ROW, "id": name, "speaker": "s", "gender": "male", "age": 3} for name in ("b", "a", "B")]
    report = write("kaldi", rows, tmp_path / "out")
    lines = {file.name: file.read_text().splitlines() for file in (tmp_path / "out").iterdir()}
    assert lines["utt2spk"] == ["B s", "a s", "b s"] and lines["spk2utt"] == ["s B a b"]
    assert lines["spk2gender"] == ["s m"] and "segments" not in lines
    assert report.lost["age"] == 3 and report.lost["task"] == 3 and report.lost["target"] == 0
    with pytest.raises(FormatError, match="out exists; remove it or choose another name"):
        write("kaldi", rows, tmp_path / "out")


def test_speechbrain_itself_reads_what_is_written(folder):
    """Also braces in JSON, quotes and leading spaces in CSV, segments in samples, and placeholders."""
    from speechbrain.dataio.dataio import load_data_csv, load_data_json
    from speechbrain.dataio.dataio import read_audio as speechbrain_audio

    rows = [{**ROW, "id": "whole", "target": ' {a} "b",\nc'}, {**ROW, "id": "part", "start": 1.0, "duration": 0.5}]
    for ending, load in (("json", load_data_json), ("csv", load_data_csv)):
        path = folder / f"sb.{ending}"
        report = Report()
        load_format("speechbrain").write(iter(rows), path, report, data_root=str(folder / "wav"))
        place = "{data_root}/a.wav" if ending == "json" else "$data_root/a.wav"
        assert place in path.read_text() and report.rejected == []
        data = load(path, {"data_root": str(folder / "wav")})
        assert data["whole"]["wrd"] == rows[0]["target"] and data["whole"]["wav"] == str(folder / "wav/a.wav")
        assert data["whole"]["duration"] == SECONDS
        if ending == "json":
            expected = read_audio(folder / "wav/a.wav", 1.0, 0.5, sample_rate=RATE)
            np.testing.assert_allclose(speechbrain_audio(data["part"]["wav"]), expected, atol=1e-4)
        else:
            assert (data["part"]["start"], data["part"]["stop"]) == ("8000", "12000")
        back, _ = read("speechbrain", path, data_root=str(folder / "wav"))
        assert [row["target"] for row in back] == [row["target"] for row in rows]
        assert back[1]["start"] == 1.0 and back[1]["duration"] == 0.5
        none, report = read("speechbrain", path)
        assert none == [] and all("--data_root" in entry["reason"] for entry in report.rejected)


def test_speechbrain_csv_keeps_what_only_looks_like_a_number(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('ID, duration, wav, spk_id, wrd, code, n\nu1, 1.5, a.wav, 07, "a, b", 007, 12\nu2, 1, a.wav\n')
    (row,), report = read("speechbrain", path)
    assert (row["speaker"], row["target"], row["code"], row["n"]) == ("07", "a, b", "007", 12)
    assert report.rejected[0]["entry"] == "u2" and "cells" in report.rejected[0]["reason"]
    with path.open(newline="") as file:
        assert next(csv.reader(file, skipinitialspace=True))[0] == "ID"
