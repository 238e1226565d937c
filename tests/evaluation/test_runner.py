"""The evaluation runner: scores by task, resumption, and refusal of what it could not score."""

import json

import pytest

from audiolm_lite.evaluation.runner import EvaluationError, evaluate

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
SAID = {"a": "hello word", "b": "good night", "c": "a dog\u2028barks", "d": "thunder", "e": "thirty"}


class Items:
    """Stands for AudioTextDataset: rows, lengths and items that know their row."""

    def __init__(self, rows=ROWS):
        self.rows = [{"instruction": "?", "dataset": "A", "references": [row["target"]], **row} for row in rows]
        self.lengths = [10] * len(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return type("Item", (), {"row": self.rows[index]})()


class Parrot:
    """Stands for ModelBundle: gives fixed answers, and fails when told to."""

    identity, generation = "parrot", {"max_new_tokens": 5}

    def __init__(self, fail_after=99):
        self.batches, self.fail_after = [], fail_after

    def answer(self, items, generation, backend):
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        self.batches.append([item.row["id"] for item in items])
        return [SAID[item.row["id"]] for item in items]


def test_answers_are_scored_by_task_and_control(tmp_path):
    result = evaluate(Parrot(), {"normal": Items(), "zeros": Items()}, METRICS, tmp_path, batch_tokens=20)
    normal = result["controls"]["normal"]
    assert normal["asr"]["wer"] == 0.25 and normal["asr"]["type"] == "asr"
    assert normal["sound"]["accuracy"] == 0.5 and normal["sound"]["unparsed"] == 1
    assert normal["age"]["mae"] == 1 and normal["age"]["penalty"] == 10
    assert result["controls"]["zeros"] == normal
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(line["control"], line["id"]) for line in lines] == [(c, i) for c in ("normal", "zeros") for i in "abcde"]
    assert lines[2]["prediction"] == SAID["c"] and lines[2]["references"] == ["this is a dog"]


def test_a_task_of_several_datasets_is_scored_for_each_as_well(tmp_path):
    rows = [ROWS[0] | {"dataset": "clean"}, ROWS[1] | {"dataset": "other"}, *ROWS[2:]]
    scores = evaluate(Parrot(), {"normal": Items(rows)}, METRICS, tmp_path)["controls"]["normal"]
    assert list(scores) == ["age", "asr", "asr, clean", "asr, other", "sound"]
    assert [scores[name]["wer"] for name in ("asr", "asr, clean", "asr, other")] == [0.25, 0.5, 0.0]


def test_an_interrupted_evaluation_goes_on_and_a_finished_one_is_scored_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Parrot(fail_after=2), {"normal": Items()}, METRICS, tmp_path, batch_tokens=20)
    partial = tmp_path / ".predictions.jsonl.partial"
    partial.write_text(partial.read_text()[:-10])  # killed while writing
    parrot = Parrot()
    result = evaluate(parrot, {"normal": Items()}, METRICS, tmp_path, batch_tokens=20)
    assert sum(map(len, parrot.batches)) == 5 - 3
    again = Parrot(fail_after=0)
    assert evaluate(again, {"normal": Items()}, METRICS, tmp_path, batch_tokens=20) == result and not partial.exists()


def test_answers_of_another_model_or_test_set_are_not_mixed_in(tmp_path):
    evaluate(Parrot(), {"normal": Items()}, METRICS, tmp_path)
    other = Parrot()
    other.identity = "cockatoo"
    with pytest.raises(EvaluationError, match=r"\(model differ\)"):
        evaluate(other, {"normal": Items()}, METRICS, tmp_path)
    with pytest.raises(EvaluationError, match=r"\(rows differ\)"):
        evaluate(Parrot(), {"normal": Items(ROWS[:4])}, METRICS, tmp_path)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "no entry scores it"),
        ({"asr": {"type": "wer"}}, "'wer' is none of asr, classification"),
        ({"asr": {"type": "asr", "normalizer": "none"}}, "unknown option 'normalizer'; asr takes normaliser"),
        ({"asr": {"type": "asr", "normaliser": "english"}}, "normaliser must be one of"),
        ({"asr": {"type": "captioning", "scores": ["cider"]}}, "unknown score 'cider'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_model_answers(tmp_path, metrics, message):
    parrot = Parrot()
    with pytest.raises(EvaluationError, match=message):
        evaluate(parrot, {"normal": Items(ROWS[:1])}, metrics, tmp_path)
    assert parrot.batches == []


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="'a' occurs more than once"):
        evaluate(Parrot(), {"normal": Items([ROWS[0], ROWS[0]])}, METRICS, tmp_path)
