"""Manifests: defaults, further fields, and messages that name file, line, field and remedy."""

import json
import pathlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.data.manifest import (
    MAX_LINE_BYTES,
    ManifestError,
    audio_path,
    iterate_manifest,
    read_manifest,
    write_manifest,
)
from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.data.row_checks import _SeenIds

ROW = {
    "id": "a-1",
    "audio": "wav/a.wav",
    "task": "asr",
    "instruction": "What is said?",
    "target": "grüße 你好",
    "dataset": "toy",
    "split": "train",
}


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_empty_manifests_are_neither_written_nor_read(tmp_path):
    file = tmp_path / "train.jsonl"
    with pytest.raises(ManifestError, match="train.jsonl: there is no row to write"):
        write_manifest(file, [])
    assert list(tmp_path.iterdir()) == []
    for content in (b"", b"\n  \n", b"\xef\xbb\xbf"):
        file.write_bytes(content)
        with pytest.raises(ManifestError, match="train.jsonl: has no row; write the manifest again"):
            read_manifest(file)
        with pytest.raises(ManifestError, match="train.jsonl: has no row"):
            ManifestTable(file)


def test_round_trip_fills_defaults_and_keeps_further_fields(tmp_path):
    rows = [ROW, {**ROW, "id": "a-2", "start": 1, "duration": 2.5, "references": ["x", "y"], "transcript": "hm"}]
    file = tmp_path / "sub" / "train.jsonl"
    write_manifest(file, rows)
    first, second = read_manifest(file)
    defaults = {"start": 0.0, "duration": None, "references": [ROW["target"]], "language": "en", "speaker": ""}
    assert first == {**ROW, **defaults}
    assert second == {**first, **rows[1]}
    assert "grüße 你好" in file.read_text(encoding="utf-8")
    assert audio_path(file, first) == tmp_path / "sub" / "wav" / "a.wav"
    assert audio_path(file, {"audio": "/corpus/a.wav"}).as_posix() == "/corpus/a.wav"


def test_blank_lines_are_skipped_and_counted_in_messages(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "id": "b"}) + "\n \n")
    assert [row["id"] for row in read_manifest(file)] == ["a-1", "b"]
    file.write_text("\n" + json.dumps(ROW) + "\n{\n")
    with pytest.raises(ManifestError, match="m.jsonl, line 3: not JSON"):
        read_manifest(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "field \"id\": ''; write a string that is not empty"),
        ({"audio": None}, 'field "audio": None; write a string'),
        ({"target": 34}, 'field "target": 34; write a string'),
        ({"split": " "}, 'field "split"'),
        ({"start": -0.5}, 'field "start": -0.5; write seconds >= 0'),
        ({"start": "1.0"}, 'field "start"'),
        ({"start": True}, 'field "start"'),
        ({"duration": 0}, 'field "duration": 0; write seconds > 0'),
        ({"duration": float("nan")}, 'field "duration": nan'),
        ({"references": "text"}, 'field "references"'),
        ({"references": []}, 'field "references"'),
        ({"references": [3]}, 'field "references"'),
        ({"speaker": 12}, 'field "speaker": 12'),
        ({"id": "first"}, "line 1 has the same id; make every id unique"),
    ],
)
def test_invalid_rows_are_refused_by_line_and_field(tmp_path, change, message):
    file = write_lines(tmp_path / "m.jsonl", {**ROW, "id": "first"}, {**ROW, **change})
    with pytest.raises(ManifestError) as error:
        read_manifest(file)
    assert message in str(error.value) and f"{file}, line 2" in str(error.value)


@pytest.mark.parametrize("field", sorted(ROW))
def test_missing_fields_are_refused(tmp_path, field):
    file = write_lines(tmp_path / "m.jsonl", {name: value for name, value in ROW.items() if name != field})
    with pytest.raises(ManifestError, match=f'line 1, field "{field}": missing'):
        read_manifest(file)


def test_other_json_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="line 1: a row is an object"):
        read_manifest(write_lines(tmp_path / "m.jsonl", ["a"]))
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "missing.jsonl")


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    file = tmp_path / "m.jsonl"
    write_manifest(file, [ROW])
    with pytest.raises(ManifestError, match='row 2, field "task"'):
        write_manifest(file, [ROW, {**ROW, "id": "b", "task": ""}])
    assert len(read_manifest(file)) == 1 and [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def line(**change):
    return json.dumps({**ROW, **change}, ensure_ascii=False).encode()


def test_byte_order_marks_and_crlf_are_read(tmp_path):
    file, mark = tmp_path / "m.jsonl", b"\xef\xbb\xbf"
    file.write_bytes(
        mark + line(id="a") + b"\r\n\r\n" + mark + line(id="b") + b"\r\n" + line(id="c")
    )  # without a line end
    assert [row["id"] for row in read_manifest(file)] == ["a", "b", "c"]
    assert read_manifest(file)[0]["target"] == "grüße 你好"


BAD_LINES = {
    "invalid UTF-8": (b'{"id": "caf\xe9"}', "byte 12 is not UTF-8"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "UTF-16; convert the file with: iconv"),
    "cut off": (line()[:40], "not JSON"),
    "two objects": (line() + line(), "not JSON"),
    "a list": (b"[]", "a row is an object with named fields, not list"),
    "a field twice": (b'{"id": "a", ' + line()[1:], "field 'id' occurs more than once"),
    "endless nesting": (b"[" * 200_000, "cannot be read"),
    "a number of 5000 digits": (line(start=0).replace(b'"start": 0', b'"start": ' + b"9" * 5000), "cannot be read"),
    "a number of 400 digits": (line(start=0).replace(b'"start": 0', b'"start": ' + b"9" * 400), 'field "start": 999'),
    "an infinite start": (line(start=0).replace(b": 0", b": Infinity"), 'field "start": inf; write seconds >= 0'),
    "NaN in a further field": (line(snr=0).replace(b": 0", b": NaN"), 'field "snr": not a JSON value'),
    "half a character": (line(target="x").replace(b'"x"', b'"\\ud83d"'), 'field "target": half of a surrogate pair'),
    "NUL in the path": (line(audio="a\0.wav"), "field \"audio\": 'a\\x00.wav'; a path cannot contain a NUL"),
    "too long": (b'{"id": "' + b"x" * (MAX_LINE_BYTES + 5) + b'"}', f"more than {MAX_LINE_BYTES} bytes"),
    "wrong type": (line(target=3), 'field "target": 3; write a string'),
    "missing field": (json.dumps({"id": "x"}).encode(), 'field "audio": missing'),
    "no instruction": (line(instruction=None), 'field "instruction": None; write a string, or take the questions from'),
    "negative segment": (line(duration=-1), 'field "duration": -1; write seconds > 0'),
    "duplicate id": (line(id="first"), "field \"id\": 'first'; line 1 has the same id"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_lines_are_refused_or_rejected(tmp_path, kind):
    bad, message = BAD_LINES[kind]
    file = tmp_path / "m.jsonl"
    file.write_bytes(line(id="first") + b"\n" + bad + b"\n" + line(id="last"))
    with pytest.raises(ManifestError) as error:
        read_manifest(file)
    assert str(error.value).startswith(f"{file}, line 2") and message in str(error.value)
    rejects = []
    assert [row["id"] for row in iterate_manifest(file, rejects)] == ["first", "last"]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [(2, str(error.value))]


def test_rejects_have_an_id_if_it_is_known_and_the_first_of_two_equal_ids_is_kept(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_bytes(
        b"\n".join([line(id="a", task=""), b"{", line(id="b", speaker="one"), line(id="b", speaker="two")])
    )
    rejects = []
    assert [row["speaker"] for row in iterate_manifest(file, rejects)] == ["one"]
    assert [(reject["line"], reject.get("id")) for reject in rejects] == [(1, "a"), (2, None), (4, "b")]


def test_a_line_of_50_mb_does_not_fill_the_memory(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_bytes(line(id="a") + b"\n" + b"x" * (50 << 20) + b"\n" + line(id="b"))
    rejects = []
    tracemalloc.start()
    assert [row["id"] for row in iterate_manifest(file, rejects)] == ["a", "b"] and rejects[0]["line"] == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_LINE_BYTES


def test_rows_without_instruction_are_read_and_written_if_they_are_allowed(tmp_path):
    file = tmp_path / "m.jsonl"
    without = {name: value for name, value in ROW.items() if name != "instruction"}
    with pytest.raises(ManifestError, match='row 1, field "instruction": missing'):
        write_manifest(file, [without])
    assert write_manifest(file, [without, {**ROW, "id": "b"}], instruction_required=False) == 2
    rows = read_manifest(file, instruction_required=False)
    assert [row["instruction"] for row in rows] == [None, ROW["instruction"]]


@pytest.mark.parametrize(
    "value", [float("nan"), {1, 2}, "\ud83d", pathlib.Path("x")], ids=["nan", "set", "surrogate", "path"]
)
def test_values_that_json_cannot_hold_are_not_written(tmp_path, value):
    with pytest.raises(ManifestError, match="row 1: (not a JSON value|half of a surrogate)"):
        write_manifest(tmp_path / "m.jsonl", [{**ROW, "extra": value}])
    assert not list(tmp_path.iterdir())


def test_rows_are_written_one_by_one(tmp_path):
    def rows():
        for number in range(8_000):
            yield {**ROW, "id": str(number), "transcript": "word " * 100}

    tracemalloc.start()
    write_manifest(tmp_path / "m.jsonl", rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20 < (tmp_path / "m.jsonl").stat().st_size / 2


def test_unreadable_manifests_are_named(tmp_path, monkeypatch):
    with pytest.raises(ManifestError, match="is a folder; name the manifest in it"):
        read_manifest(tmp_path)
    file = write_lines(tmp_path / "m.jsonl", ROW)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(ManifestError, match=r"m.jsonl: cannot be read \(Permission denied\)"):
        read_manifest(file)


@given(names=st.lists(st.text(max_size=4), max_size=200))
@settings(max_examples=50, deadline=None)
def test_repeated_ids_are_found_like_in_a_dict(names):
    ids, expected = _SeenIds(), {}
    for number, name in enumerate(names, start=1):
        assert ids.first_number(name, number) == expected.setdefault(name, number)


def test_ids_take_little_memory():
    tracemalloc.start()
    ids = _SeenIds()
    assert all(ids.first_number(f"utterance-{number}", number) == number for number in range(1, 50_001))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert ids.first_number("utterance-777", 1 << 33) == 777
    assert used < 50_000 * 20 + 65_536 * 150  # and the empty buckets
