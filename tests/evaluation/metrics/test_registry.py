"""Entries of `metrics` that cannot be used are refused before any answer is generated."""

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.evaluation.metrics.registry import FAMILIES, check_metrics, score_task


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "task 'asr': .* no entry scores it"),
        ({"asr": {"type": "wer"}}, "unknown type 'wer'.* Known: asr, classification"),
        ({"asr": {}}, "unknown type None"),
        ({"asr": {"type": "asr", "normalizer": "none"}}, "unknown option 'normalizer'; did you mean 'normaliser'"),
        ({"asr": {"type": "asr", "normaliser": "english"}}, "unknown normaliser 'english'.* Known: whisper_english"),
        ({"asr": {"type": "asr", "normaliser": ["basic"]}}, "unknown normaliser"),
        (
            {"asr": {"type": "captioning", "scores": ["bleu", "cider"]}},
            "unknown scores 'cider'; did you mean 'cider_d'",
        ),
        ({"asr": {"type": "captioning", "scores": "bleu"}}, "unknown scores 'b'"),
        ({"asr": {"type": "matched_caption", "model": "x"}}, "unknown option 'model'"),
    ],
)
def test_unusable_entries_are_refused(metrics, message):
    with pytest.raises(ConfigError, match=message):
        check_metrics(metrics, ["asr"])


def test_usable_entries_are_accepted():
    metrics = {
        "asr": {"type": "asr", "normaliser": "basic"},
        "caption": {"type": "captioning", "scores": ["bleu", "cider_d"]},
        "class": {"type": "matched_caption", "matcher": {"type": "embedding", "source": "model"}},
        "unused": {"type": "not checked, because no row has this task"},
    }
    check_metrics(metrics, ["asr", "caption", "class"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_columns_for_reports(name):
    columns = FAMILIES[name].columns
    assert columns and all(column.better in "↑↓" for column in columns)
    assert len({column.name for column in columns}) == len(columns)


@pytest.mark.parametrize(
    ("entry", "fields", "problem"),
    [
        ({"type": "regression"}, {"target": "old"}, "target 'old' does not name one number"),
        ({"type": "multi_label"}, {"sounds": []}, "it has no label"),
        ({"type": "slots"}, {"target": "latte"}, "target 'latte' has no \"name: value\""),
        ({"type": "classification", "labels": ["dog", "cat"]}, {"target": "cow"}, "target 'cow' is not among"),
        ({"type": "captioning", "scores": ["bleu"]}, {"references": [" "]}, "it has no reference caption"),
    ],
)
def test_rows_that_cannot_be_scored_are_named_by_their_ids(entry, fields, problem):
    targets = {"regression": "31", "slots": "drink: mocha"}
    good = {"target": targets.get(entry["type"], "dog"), "sounds": ["dog"], "references": ["a dog"], "language": None}
    good |= {"instruction": ""}
    rows = [{"id": "first", **good}, {"id": "second", **good, **fields}]
    with pytest.raises(ConfigError, match=f'row "second": {problem}'):
        score_task(rows, ["dog", "dog"], entry)
