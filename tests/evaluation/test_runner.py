"""The evaluation runner: scores per task, resumption, and refusal of test sets that cannot be scored."""

import json

import pytest
import torch

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item
from audiolm_lite.data.dataset import LeftOut
from audiolm_lite.decoding.bundle import Answer
from audiolm_lite.evaluation.report import left_out_rows, prompt_notes, result_rows, write_report
from audiolm_lite.evaluation.runner import EvaluationError, evaluate
from audiolm_lite.language.prompt import PromptTemplate

METRICS = {
    "asr": {"type": "asr", "normaliser": "none"},
    "sound": {"type": "classification"},
    "age": {"type": "regression", "field": "age", "penalty": 10},
}
ROWS = [
    {"id": "a", "task": "asr", "target": "hello world"},
    {"id": "b", "task": "asr", "target": "good night"},
    {"id": "c", "task": "sound", "target": "this is a dog", "label": "dog", "labels": ["dog", "rain"]},
    {"id": "d", "task": "sound", "target": "rain", "label": "rain", "labels": ["dog", "rain"]},
    {"id": "e", "task": "age", "target": "about 30", "age": 31},
]
ANSWERS = {"a": "hello word", "b": "good night", "c": "a dog\u2028barks", "d": "thunder", "e": "thirty"}
STOPPED = {"a": "loop", "b": "limit", "e": "limit"}


class FixedDataset:
    """In place of AudioTextDataset: rows, lengths, and items of one second; the audio of `damaged` cannot be read."""

    def __init__(self, rows=ROWS, omitted=(), damaged=()):
        shared = {"instruction": "?", "dataset": "A", "start": 0.0, "duration": None, "language": "en"}
        self.rows = [{**shared, "audio": f"{row['id']}.wav", "references": [row["target"]], **row} for row in rows]
        self.lengths = [10] * len(rows)
        self.omitted, self.damaged = list(omitted), damaged

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        if row["id"] in self.damaged:
            raise AudioError(row["audio"], "cannot be decoded")
        return Item(row, [], [], waveform=torch.zeros(16000), seconds=1.0)


class FixedModel:
    """In place of ModelBundle: fixed answers, and an interruption after `fail_after` batches."""

    identity, generation, dtype = "fixed", {"max_new_tokens": 5}, "float32"
    template = PromptTemplate("{audio}{transcript:(*)}{instruction}{answer}{eos}")

    def __init__(self, fail_after=99):
        self.batches, self.fail_after = [], fail_after

    def answers(self, items, generation, backend):
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        self.batches.append([item.row["id"] for item in items])
        return [Answer(ANSWERS[item.row["id"]], STOPPED.get(item.row["id"])) for item in items]


def test_answers_are_scored_per_task_and_control(tmp_path):
    datasets = {"normal": FixedDataset(), "zeros": FixedDataset()}
    result = evaluate(FixedModel(), datasets, METRICS, tmp_path, batch_tokens=20)
    normal = result["controls"]["normal"]
    assert normal["asr"]["wer"] == 0.25 and normal["asr"]["type"] == "asr"
    assert normal["sound"]["accuracy"] == 0.5 and normal["sound"]["unparsed"] == 1
    assert normal["age"]["mae"] == 1 and normal["age"]["penalty"] == 10
    assert [normal[task]["stopped"] for task in ("asr", "sound", "age")] == [
        {"loop": 1, "limit": 1},
        {"loop": 0, "limit": 0},
        {"loop": 0, "limit": 1},
    ]
    zeros = result["controls"]["zeros"]
    assert {task: zeros[task] | {"speed": normal[task]["speed"]} for task in zeros} == normal
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(line["control"], line["id"]) for line in lines] == [(c, i) for c in ("normal", "zeros") for i in "abcde"]
    assert [line["finish_reason"] for line in lines[:5]] == [
        "loop", "length_limit", "end_token", "end_token", "length_limit"
    ]  # fmt: skip
    assert {name: lines[0][name] for name in ("audio", "start", "duration", "language")} == {
        "audio": "a.wav", "start": 0.0, "duration": 1.0, "language": "en"
    }  # fmt: skip
    assert lines[5]["duration"] is None  # without audio, the item has the length of another clip
    assert lines[0]["scores"]["wer"] == 0.5 and lines[1]["scores"]["wer"] == 0
    assert lines[2]["scores"] == {"label": "dog", "correct": True} and lines[3]["scores"]["label"] is None
    assert lines[4]["scores"] == {"number": 30, "error": 1}
    assert "all zero" in result["definitions"]["zeros"]
    speed = normal["asr"]["speed"]
    assert speed["audio_seconds"] == 2 and speed["rtfx"] == pytest.approx(2 / speed["answer_seconds"])
    assert lines[2]["prediction"] == ANSWERS["c"] and lines[2]["references"] == ["this is a dog"]


def test_rows_that_are_left_out_are_counted(tmp_path):
    omitted = [LeftOut("x", "asr", "no features", "31 s"), LeftOut("y", "caption", "too short", "1 frame")]
    metrics = {**METRICS, "caption": {"type": "captioning"}}
    dataset = FixedDataset(omitted=omitted, damaged=("b", "e"))
    result = evaluate(FixedModel(), {"normal": dataset}, metrics, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    scores = result["controls"]["normal"]
    assert scores["asr"]["wer"] == 0.5 and scores["asr"]["left_out"] == 2 and scores["sound"]["left_out"] == 0
    assert scores["age"] == {"type": "regression", "items": 0, "left_out": 1}
    assert scores["caption"] == {"type": "captioning", "items": 0, "left_out": 1}
    left_out = result["left_out"]["normal"]
    assert left_out["count"] == 4 and left_out["kinds"] == {"no features": 1, "too short": 1, "unreadable": 2}
    assert left_out["rows"]["b"] == "unreadable: b.wav: cannot be decoded"
    assert result["items"] == 3 == len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")) - 1
    assert result_rows(result)[1][0][1] == "1 of 3" and "4 rows (1 no features" in left_out_rows(result)[0]
    write_report(tmp_path / "report.html", result, tmp_path / "predictions.jsonl", title="Test")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 3" in page and "Left out, with audio: 4 rows" in page and "hello word … (cut, it repeated" in page
    dataset.damaged = ()  # repaired: only the missing rows are asked
    model = FixedModel()
    again = evaluate(model, {"normal": dataset}, metrics, tmp_path)
    assert sorted(name for batch in model.batches for name in batch) == ["b", "e"]
    assert again["left_out"]["normal"]["count"] == 2 and again["controls"]["normal"]["asr"]["wer"] == 0.25


def test_transcripts_of_the_rows_are_scored_without_the_model(tmp_path):
    rows = [{**ROWS[0], "transcript": "hello"}, {**ROWS[1], "transcript": " "}]
    model = FixedModel()
    result = evaluate(model, {"normal": FixedDataset(rows), "transcript": FixedDataset(rows)}, METRICS, tmp_path)
    assert model.batches == [["a", "b"]]
    assert result["controls"]["transcript"]["asr"]["wer"] == 0.75
    assert result["prompt_fields"] == {"transcript": {"with": 1, "without": 1}}
    assert prompt_notes(result) == ["Prompts: 1 of 2 rows have the field transcript."]
    assert "recogniser alone" in result_rows(result)[0]
    result["controls"]["zeros"] = result["controls"]["shuffled"] = {}
    assert prompt_notes(result)[0].endswith("empty without audio; with another clip's audio it is that clip's.")


def test_task_with_several_datasets_is_also_scored_per_dataset(tmp_path):
    rows = [ROWS[0] | {"dataset": "clean"}, ROWS[1] | {"dataset": "other"}, *ROWS[2:]]
    scores = evaluate(FixedModel(), {"normal": FixedDataset(rows)}, METRICS, tmp_path)["controls"]["normal"]
    assert list(scores) == ["age", "asr", "asr, clean", "asr, other", "sound"]
    assert [scores[name]["wer"] for name in ("asr", "asr, clean", "asr, other")] == [0.25, 0.5, 0.0]


def test_interrupted_evaluation_continues_and_finished_one_is_only_scored_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(FixedModel(fail_after=2), {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20)
    partial = tmp_path / ".predictions.jsonl.partial"
    partial.write_text(partial.read_text()[:-10])  # as if killed while writing
    model = FixedModel()
    result = evaluate(model, {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20)
    assert sum(map(len, model.batches)) == 5 - 3
    again = FixedModel(fail_after=0)
    assert evaluate(again, {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20) == result
    assert not partial.exists()


def test_answers_of_another_model_or_test_set_are_refused(tmp_path):
    evaluate(FixedModel(), {"normal": FixedDataset()}, METRICS, tmp_path)
    other = FixedModel()
    other.identity = "another"
    with pytest.raises(EvaluationError, match=r"\(model differ\)"):
        evaluate(other, {"normal": FixedDataset()}, METRICS, tmp_path)
    with pytest.raises(EvaluationError, match=r"\(rows differ\)"):
        evaluate(FixedModel(), {"normal": FixedDataset(ROWS[:4])}, METRICS, tmp_path)


def test_unusable_metrics_are_refused_before_the_model_answers(tmp_path):
    model = FixedModel()
    with pytest.raises(ConfigError, match="unknown type 'wer'"):
        evaluate(model, {"normal": FixedDataset(ROWS[:1])}, {"asr": {"type": "wer"}}, tmp_path)
    assert model.batches == []


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="'a' occurs more than once"):
        evaluate(FixedModel(), {"normal": FixedDataset([ROWS[0], ROWS[0]])}, METRICS, tmp_path)


def test_answers_of_earlier_versions_are_scored_again(tmp_path):
    evaluate(FixedModel(), {"normal": FixedDataset()}, METRICS, tmp_path)
    file = tmp_path / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    old = [{name: line[name] for name in ("id", "control", "prediction")} | {"stopped": None} for line in lines]
    file.write_text(
        "".join(json.dumps({**line, "stopped": "limit"} if line["id"] == "b" else line) + "\n" for line in old)
    )
    scores = evaluate(FixedModel(fail_after=0), {"normal": FixedDataset()}, METRICS, tmp_path)["controls"]["normal"]
    assert scores["asr"]["wer"] == 0.25 and scores["asr"]["stopped"] == {"loop": 0, "limit": 1}
    assert scores["asr"]["speed"] == {}


def test_other_inputs_are_another_evaluation(tmp_path):
    def run(**inputs):
        return evaluate(FixedModel(), {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20, inputs=inputs)

    assert run(seed=1, features="live")["seed"] == 1
    run(seed=1, features="live")
    for changed in ({"seed": 2, "features": "live"}, {"seed": 1, "features": {"dtype": "int8"}}):
        with pytest.raises(
            EvaluationError, match=f"another evaluation .{'seed' if changed['seed'] == 2 else 'features'}"
        ):
            run(**changed)


def test_an_evaluation_of_an_earlier_version_goes_on(tmp_path):
    evaluate(FixedModel(), {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20)
    model = FixedModel()
    evaluate(model, {"normal": FixedDataset()}, METRICS, tmp_path, batch_tokens=20, inputs={"seed": 1})
    assert not model.batches  # all answers are there
