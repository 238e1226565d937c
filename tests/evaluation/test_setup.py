"""The control "transcript": the recogniser's field of the rows of transcription tasks, which no model reads."""

import numpy as np
import pytest
import soundfile

from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.evaluation.runner import EvaluationError, evaluate
from audiolm_lite.evaluation.setup import build_test_sets
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model

METRICS = {"asr": {"type": "asr", "normaliser": "none"}, "sound": {"type": "classification"}}


@pytest.fixture
def test_sets(sources, make_experiment, make_model):
    """Build the test sets of two clips to transcribe and one to classify, with changes of the first row."""
    experiment = make_experiment(lora=False)
    experiment["template"] = "{bos}{audio}{transcript:: *} {instruction} answer : {answer}{eos}"
    save_model(make_model(experiment), experiment, sources / "model")
    bundle = load_model(sources / "model")
    rows = [
        {"id": "0", "task": "asr", "target": "dog rain", "transcript": "dog"},
        {"id": "1", "task": "asr", "target": "rain", "transcript": "rain"},
        {"id": "2", "task": "sound", "target": "dog", "labels": ["dog", "rain"]},
    ]
    shared = {"instruction": "what", "dataset": "made", "split": "test"}
    rows = [{**row, **shared, "audio": f"{row['id']}.wav"} for row in rows]
    for row in rows:
        noise = np.random.default_rng(int(row["id"])).standard_normal(8000)
        soundfile.write(sources / row["audio"], 0.1 * noise, 16000)

    def build(metrics=METRICS, **changes):
        write_manifest(sources / "test.jsonl", [{**rows[0], **changes}, *rows[1:]])
        hparams = {"manifests": [sources / "test.jsonl"], "controls": ["normal", "transcript"], "metrics": metrics}
        hparams |= dict.fromkeys(("tasks", "question_files", "feature_folder"))
        return bundle, build_test_sets({**hparams, "seed": 1, "model_folder": "model"}, bundle)

    return build


def test_the_recogniser_is_scored_beside_the_model(test_sets, tmp_path):
    bundle, datasets = test_sets()
    result = evaluate(bundle, datasets, METRICS, tmp_path / "out", generation={"max_new_tokens": 3})
    assert set(result["controls"]["normal"]) == {"asr", "sound"}
    assert list(result["controls"]["transcript"]) == ["asr"]
    assert result["controls"]["transcript"]["asr"]["wer"] == pytest.approx(1 / 3)
    assert result["prompt_fields"] == {"transcript": {"with": 2, "without": 1}}


def test_rows_and_tasks_that_it_cannot_score_are_refused(test_sets):
    with pytest.raises(EvaluationError, match='1 rows, the first is "0", have none.*audiolm-lite transcripts'):
        test_sets(transcript=None)
    with pytest.raises(EvaluationError, match="transcript needs a task of type asr"):
        test_sets(metrics={"asr": {"type": "captioning"}, "sound": {"type": "classification"}})
