"""Manifests: defaults, what is kept, and messages that name file, line, field and remedy."""

import json

import pytest

from audiolm_lite.data.manifest import ManifestError, audio_path, read_manifest, write_manifest

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


def test_blank_lines_are_no_rows_and_count_in_messages(tmp_path):
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
        ({"id": "first"}, "line 1 has the same; make every id unique"),
    ],
)
def test_broken_rows_are_refused_by_line_and_field(tmp_path, change, message):
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
