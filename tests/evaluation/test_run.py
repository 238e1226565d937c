"""The evaluate command: rows that are left out, its exit status, and the control without audio."""

import json

import numpy as np
import pytest
import soundfile

from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.deploy.machine import missing_compiler
from audiolm_lite.evaluation.open_asr import main as open_asr
from audiolm_lite.evaluation.open_asr import real_time_factor
from audiolm_lite.evaluation.run import main
from audiolm_lite.features.extract import extract
from audiolm_lite.hub.save import save_model

YAML = """
data_folder: {root}
model_folder: {root}/model
output_folder: {root}/{name}
manifests: [{root}/test.jsonl]
feature_folder: {store}
metrics: {{asr: {{type: asr}}, sound: {{type: classification}}}}
controls: [{controls}]
generation: {{max_new_tokens: 4}}
dtype: float32
"""
SECONDS = [0.5, 0.8, 1.1, 1.9]


@pytest.fixture
def evaluation(sources, make_experiment, make_model, capsys):
    """Evaluate a tiny model, with stored features or without; returns exit status, metrics, predictions and output."""
    experiment = make_experiment(lora=False)
    save_model(make_model(experiment), experiment, sources / "model")
    encoder = build("encoders", experiment["encoder"])
    rows = []
    for number, seconds in enumerate(SECONDS):
        noise = np.random.default_rng(number).standard_normal(round(16000 * seconds))
        soundfile.write(sources / f"{number}.wav", 0.1 * noise, 16000)
        row = {"id": str(number), "audio": f"{number}.wav", "duration": seconds, "task": "asr", "target": "dog rain"}
        rows.append(row | {"instruction": "what", "dataset": "made", "split": "test"})

    def run(name, stored, *options, further=(), controls="normal, zeros"):
        own = [*rows, *({**rows[0], **changes} for changes in further)]
        write_manifest(sources / "test.jsonl", own)
        if stored:
            extract(own, encoder, sources / "store", audio_root=sources, dtype="float32", max_rejects=1)
        store = sources / "store" if stored else "null"
        (sources / "e.yaml").write_text(YAML.format(root=sources, name=name, store=store, controls=controls))
        status = 0
        try:
            main([str(sources / "e.yaml"), "--device", "cpu", *options])
        except SystemExit as stopped:
            status = stopped.code
        lines = (sources / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = json.loads((sources / name / "metrics.json").read_text())
        return status, metrics, [json.loads(line) for line in lines], capsys.readouterr().out

    return run


def test_silence_is_answered_without_the_model_and_counted(evaluation, sources):
    """With stored features too; the control without audio shows what the model says."""
    soundfile.write(sources / "quiet.wav", np.full(16000, 1e-4), 16000)
    quiet = {"id": "quiet", "audio": "quiet.wav", "duration": 1.0, "target": "", "references": [""]}
    for stored in (True, False):
        _, metrics, lines, printed = evaluation(f"stored_{stored}", stored, further=[quiet], controls="normal, zeros")
        given = {(line["control"], line["id"]): line for line in lines}
        assert given["normal", "quiet"]["prediction"] == "" and given["normal", "quiet"]["finish_reason"] == "silence"
        assert given["zeros", "quiet"]["finish_reason"] != "silence"
        assert [metrics["controls"][control]["asr"]["silent"] for control in ("normal", "zeros")] == [1, 0]
        assert metrics["generation"]["silence_level"] == -60
        assert "clips below silence_level, with audio: asr 1 of" in printed
    off = ["--generation.silence_level", "null", "--generation.tokens_per_second", "null"]
    _, metrics, _, _ = evaluation("off", False, *off, further=[quiet])
    assert metrics["controls"]["normal"]["asr"]["silent"] == 0 and metrics["generation"]["tokens_per_second"] is None


def test_the_control_without_audio_is_the_same_with_stored_and_live_features(evaluation, sources, capsys):
    given = {}
    for stored in (True, False):
        status, metrics, lines, _ = evaluation(f"stored_{stored}", stored)
        assert status == 0 and metrics["left_out"]["normal"]["count"] == 0
        given[stored] = {(line["control"], line["id"]): line["prediction"] for line in lines}
        assert metrics["definitions"]["zeros"].startswith("features that are all zero")
        speed = metrics["controls"]["normal"]["asr"]["speed"]
        assert isinstance(speed["rtfx"], dict) if stored else speed["rtfx"] > 0
        assert speed["audio_seconds"] == pytest.approx(sum(SECONDS), abs=0.2)
        open_asr([str(sources / f"stored_{stored}"), "--model", "me/tiny", "--dataset", "made"])
        printed = capsys.readouterr().out
        file = sources / f"stored_{stored}" / "MODEL_me-tiny_DATASET_made_test.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert str(file) in printed and ("RTFx unknown" in printed) == stored
        assert list(rows[0]) == ["audio_filepath", "duration", "time", "text", "pred_text"]
        assert [row["duration"] for row in rows] == SECONDS and rows[1]["text"] == "dog rain"
        assert all((row["time"] is None) == stored for row in rows)
        assert real_time_factor(rows) == (
            None if stored else pytest.approx(sum(SECONDS) / sum(r["time"] for r in rows))
        )
    assert given[True] == given[False]
    assert any(given[True]["zeros", name] != given[True]["normal", name] for name in "0123")


def test_rows_without_usable_audio_are_left_out_and_give_a_status(evaluation, sources):
    soundfile.write(sources / "long.wav", np.full(48000, 0.1), 16000)
    (sources / "damaged.wav").write_bytes(b"RIFF no audio")
    further = [
        {"id": "long", "audio": "long.wav", "duration": 3.0},
        {"id": "damaged", "audio": "damaged.wav"},
        {"id": "header", "audio": "damaged.wav", "duration": None, "task": "sound", "target": "dog"},
        {"id": "late", "audio": "0.wav", "start": 4.0, "duration": None},
        {"id": "two", "further_audio": [{"audio": "long.wav"}]},
    ]
    status, metrics, lines, output = evaluation("live", False, further=further)
    assert status == 3 and "Exit status 3" in output and "Left out, with audio: 5 rows" in output
    for control in ("normal", "zeros"):
        left_out = metrics["left_out"][control]
        assert left_out["count"] == 5 and left_out["kinds"] == {"length": 2, "unreadable": 3}
        assert "damaged.wav" in left_out["rows"]["damaged"] and "past the end" in left_out["rows"]["late"]
        assert metrics["controls"][control]["asr"]["left_out"] == 4 and metrics["items"] == 8
        assert metrics["controls"][control]["sound"] == {"type": "classification", "items": 0, "left_out": 1}
    assert {line["id"] for line in lines} == set("0123") and "4 of 8" in output
    assert "5 rows (" in (sources / "live" / "report.html").read_text(encoding="utf-8")
    assert evaluation("live", False, "--allow_left_out", "true", further=further)[0] == 0
    status, metrics, _, _ = evaluation("stored", True, further=further[:2])
    assert status == 3 and metrics["left_out"]["zeros"]["kinds"] == {"no features": 2}


@pytest.mark.skipif(missing_compiler() is not None, reason="no C++ compiler")
def test_the_cpu_backend_gives_the_answers_of_eager_and_is_recorded(evaluation):
    answers = {}
    for backend in ("eager", "cpu"):
        status, metrics, lines, _ = evaluation(backend, False, "--answer_backend", backend)
        assert status == 0 and metrics["backend"] == backend
        answers[backend] = [line["prediction"] for line in lines]
    assert answers["cpu"] == answers["eager"] != []
