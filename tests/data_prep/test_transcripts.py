"""Whisper's transcripts in a manifest, by a tiny random Whisper, whose output is meaningless but reproducible."""

import json

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.data.manifest import read_manifest, write_manifest
from data_prep import transcripts


@pytest.fixture
def made(tmp_path):
    """Three clips with two questions each, one of them broken, and an openai-whisper checkpoint."""
    import whisper

    torch.manual_seed(0)
    dims = whisper.model.ModelDimensions(80, 1500, 16, 2, 1, 51865, 448, 16, 2, 1)
    model = whisper.model.Whisper(dims)
    torch.save({"dims": dims.__dict__, "model_state_dict": model.state_dict()}, tmp_path / "tiny.pt")
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(8000), 16000)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    rows = [
        {"id": f"{name}-{task}", "audio": f"{name}.wav", "task": task, "instruction": "?", "target": "x"}
        | {"dataset": "d", "split": "test"}
        for name in "abc"
        for task in ("asr", "caption")
    ]
    write_manifest(tmp_path / "test.jsonl", rows)
    return tmp_path


def test_every_row_gets_its_clips_transcript(made, monkeypatch, capsys):
    import whisper

    transcribed = []

    def transcribe(model, audio, **options):
        transcribed.append(len(audio))
        if len(transcribed) == 2 and not made.joinpath("killed").exists():
            made.joinpath("killed").touch()
            raise KeyboardInterrupt
        return {"text": f" text {len(transcribed)} "}

    monkeypatch.setattr(whisper.model.Whisper, "transcribe", transcribe)
    command = [str(made / "test.jsonl"), str(made / "with.jsonl"), "--model", str(made / "tiny.pt"), "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        transcripts.main(command)
    assert not (made / "with.jsonl").exists()
    assert transcripts.main(command) == 3
    rows = {row["id"]: row["transcript"] for row in read_manifest(made / "with.jsonl")}
    # The clip transcribed before the interruption is not transcribed again.
    assert rows == {"a-asr": "text 1", "a-caption": "text 1", "b-asr": "text 3", "b-caption": "text 3"}
    [rejected] = map(json.loads, (made / "with.jsonl.rejected.jsonl").read_text().splitlines())
    assert rejected["key"] == "c.wav" and "not readable as audio" in rejected["reason"]
    assert "4 of 6 rows, 1 clips rejected" in capsys.readouterr().out


def test_a_real_model_runs_and_is_deterministic(made):
    rows = read_manifest(made / "test.jsonl")[:2]
    write_manifest(made / "one.jsonl", rows)
    texts = []
    for name in ("x.jsonl", "y.jsonl"):
        command = [str(made / "one.jsonl"), str(made / name), "--model", str(made / "tiny.pt"), "--device", "cpu"]
        assert transcripts.main([*command, "--language", "en", "--field", "words"]) == 0
        texts.append([row["words"] for row in read_manifest(made / name)])
    assert texts[0] == texts[1] and len(set(texts[0])) == 1


def test_blank_transcripts_need_no_model(made):
    assert transcripts.main([str(made / "test.jsonl"), str(made / "blank.jsonl"), "--blank"]) == 0
    assert [row["transcript"] for row in read_manifest(made / "blank.jsonl")] == [""] * 6


def test_output_in_another_folder_is_refused(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        transcripts.main([str(made / "test.jsonl"), str(tmp_path / "other" / "x.jsonl")])
    assert "manifest's folder" in capsys.readouterr().err
