"""The command that converts manifests: paths, exit status, rejects, options, and a real corpus in all formats."""

import json
import math
from pathlib import Path

import pytest

from audiolm_lite.audio.reading import read_audio
from audiolm_lite.data.manifest import read_manifest
from data_prep.convert import convert, main
from data_prep.formats import FormatError, format_names, load_format, writable_formats
from tests.data_prep.test_formats import DEFAULTS, ROW, WRITABLE, write


def manifest_of(path: Path, rows: list[dict]) -> Path:
    write("manifest", rows, path)
    return path


def test_paths_stay_right_when_the_manifest_moves(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "wav").mkdir(parents=True)
    (folder / "wav/a.wav").touch()
    source = manifest_of(folder / "train.jsonl", [ROW])
    output = tmp_path / "deep/er/train.json"
    report = convert("manifest", "nemo", source, output, defaults=DEFAULTS)
    audio = json.loads(output.read_text())["audio_filepath"]
    assert not audio.startswith("/") and (output.parent / audio).resolve() == folder / "wav/a.wav"
    assert not report.without_audio
    convert("manifest", "nemo", source, output, defaults=DEFAULTS, absolute=True)
    assert json.loads(output.read_text())["audio_filepath"] == str(folder / "wav/a.wav")
    moved = manifest_of(tmp_path / "elsewhere.jsonl", [ROW])
    assert convert("manifest", "nemo", moved, output, defaults=DEFAULTS).without_audio
    assert not convert("manifest", "nemo", moved, output, defaults=DEFAULTS, audio_root=folder).without_audio


def test_exit_status_and_rejected_rows(tmp_path, capsys):
    source, output = tmp_path / "m.json", tmp_path / "out.jsonl"
    rejects = tmp_path / "out.jsonl.rejected.jsonl"
    line = '{"audio_filepath": "a.wav", "text": "t"}\n'
    source.write_text(line * 3)
    assert main(["nemo", "manifest", str(source), str(output)]) == 0 and not rejects.exists()
    assert len(read_manifest(output)) == 3
    before = output.read_bytes()
    source.write_text(line * 3 + "{\n")
    with pytest.raises(FormatError, match="1 of 4 rows were rejected"):
        main(["nemo", "manifest", str(source), str(output)])
    assert output.read_bytes() == before and json.loads(rejects.read_text())["line"] == 4
    assert main(["nemo", "manifest", str(source), str(output), "--max_rejects", "0.25", "--dataset", "d"]) == 3
    shown = capsys.readouterr().out
    assert "rows written   3" in shown and "audio missing  3" in shown
    assert read_manifest(output)[0]["id"] == "d-1"
    source.write_text(line)
    assert main(["nemo", "manifest", str(source), str(output)]) == 0 and not rejects.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "out.jsonl"]


@pytest.mark.parametrize("target", writable_formats())
def test_nothing_is_written_if_all_rows_are_rejected(tmp_path, target):
    source, output = tmp_path / "m.json", tmp_path / "out"
    source.write_text('{"audio_filepath": 3}\n{\n')
    with pytest.raises(FormatError, match="m.json: all 2 rows were rejected, so nothing is written; see .*out.rej"):
        convert("nemo", target, source, output, defaults=DEFAULTS, max_rejects=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "out.rejected.jsonl"]
    source.write_text("\n")
    with pytest.raises(FormatError, match="m.json: contains no rows"):
        convert("nemo", target, source, output, defaults=DEFAULTS)


def test_strict_options_and_renamed_fields(tmp_path, capsys):
    source = tmp_path / "m.jsonl"
    source.write_text('{"key": "k", "source": "a.wav", "caption": "c", "mood": "x"}\n')
    arguments = ["slam", "kaldi", str(source), str(tmp_path / "out")]
    with pytest.raises(FormatError, match="kaldi cannot store dataset 1, instruction 1, mood 1"):
        main([*arguments, "--field", "target=caption", "--strict"])
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--field", "target=caption"]) == 0
    assert "mood 1" in capsys.readouterr().out
    with pytest.raises(FormatError, match="--data_root: neither slam nor kaldi"):
        main([*arguments, "--data_root", "/x"])
    with pytest.raises(SystemExit):
        main([*arguments, "--field", "target"])


def test_questions_can_be_left_to_question_files(tmp_path):
    lines = [
        {"audio_filepath": "a.wav", "answer": "hello"},
        {"audio_filepath": "b.wav", "answer": "a", "question": "b?"},
    ]
    (tmp_path / "nemo.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source, output = tmp_path / "nemo.json", tmp_path / "out.jsonl"
    for options, expected in ((["--instruction", "null"], [None, "b?"]), ([], ["Transcribe the speech.", "b?"])):
        assert main(["nemo", "manifest", str(source), str(output), *options]) == 0
        assert [row["instruction"] for row in read_manifest(output, instruction_required=False)] == expected
    assert main(["nemo", "nemo", str(source), str(tmp_path / "n.json"), "--instruction", "null", "--absolute"]) == 0


def test_help_lists_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.partition("formats:")[2].splitlines() if line}
    assert lines.keys() == set(format_names())
    assert {name for name, line in lines.items() if "(read only)" not in line} == set(writable_formats())
    with pytest.raises(FormatError, match="unknown format 'kaldy'; did you mean 'kaldi'"):
        load_format("kaldy")


def test_a_format_that_cannot_be_written_is_refused(tmp_path, capsys):
    source = manifest_of(tmp_path / "train.jsonl", [ROW])
    choices = ", ".join(writable_formats())
    with pytest.raises(FormatError, match=f"slam can be read, but not written; choose one of {choices}"):
        convert("manifest", "slam", source, tmp_path / "out", defaults=DEFAULTS)
    with pytest.raises(SystemExit):
        main(["manifest", "slam", str(source), str(tmp_path / "out")])
    shown = capsys.readouterr().err
    assert f"TO: slam can be read, but not written; choose one of {choices}" in shown
    assert not (tmp_path / "out").exists()


def test_real_kaldi_folder_through_every_writable_format(real_data, tmp_path):
    """After all conversions the rows equal those of SpeechOcean762's Kaldi folder."""
    corpus = real_data / "speechocean762"
    first = tmp_path / "first.jsonl"
    report = convert("kaldi", "manifest", corpus / "train", first, defaults=DEFAULTS, audio_root=corpus)
    rows = read_manifest(first)
    assert report.written == len(rows) == 180 and not report.without_audio and not report.rejected
    assert {row["gender"] for row in rows} == {"male", "female"}
    seconds = sum(len(read_audio(tmp_path / row["audio"])) for row in rows[:9]) / 16000
    assert 20 < seconds < 100
    source, path = "manifest", first
    for number, (name, ending) in enumerate(WRITABLE):
        output = tmp_path / f"step{number}{ending}"
        convert(source, name, path, output, defaults=DEFAULTS)
        source, path = name, output
    convert(source, "manifest", path, tmp_path / "last.jsonl", defaults=DEFAULTS)
    last = {row["id"]: row for row in read_manifest(tmp_path / "last.jsonl")}
    for row in rows:
        again = last[row["id"]]
        assert {**again, "duration": None, "audio": ""} == {**row, "duration": None, "audio": ""}
        assert (tmp_path / again["audio"]).read_bytes() == (tmp_path / row["audio"]).read_bytes()
        assert math.isclose(again["duration"], len(read_audio(tmp_path / row["audio"])) / 16000, abs_tol=1e-3)
