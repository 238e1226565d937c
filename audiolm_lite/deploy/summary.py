"""What quick starts report: headings of their steps, a latency measured once per model, and one line of results.

A quick start runs all commands of a recipe in one process and ends with one JSON object on standard output.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.evaluation.report import markdown_table
from audiolm_lite.storage.atomic import write_text

# Name in the results -> task and score of the evaluation.
SCORES = {
    "wer": ("asr", "wer"),
    "cer": ("asr", "cer"),
    "sound_accuracy": ("sound_class", "accuracy"),
    "gender_accuracy": ("gender", "accuracy"),
    "emotion_accuracy": ("emotion", "accuracy"),
    "qa_accuracy": ("qa", "accuracy"),
    "age_mae": ("age", "mae"),
    "cider_d": ("caption", "cider_d"),
}
TIMES = ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb", "backend")


def heading(text: str) -> None:
    """Print the title of a step at once, also if standard output is not a terminal.

    Examples
    --------
    >>> heading("4/5  latency")
    <BLANKLINE>
    === 4/5  latency
    """
    print(f"\n=== {text}", flush=True)


def latency_once(
    metrics: Mapping[str, Any], folder: str | Path, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Latency that `latency.json` in `folder` has of the evaluated model, otherwise the result of `measure`.

    Parameters
    ----------
    metrics : mapping
        Result of the evaluation, of which `model` identifies the model.
    folder : str or Path
        Where `measure` writes latency.json.
    measure : callable
        The latency command with its arguments.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> def measure():
    ...     print("measured")
    ...     _ = (folder / "latency.json").write_text('{"ttft_ms": 60.0}')
    ...     return {"ttft_ms": 60.0}
    >>> latency_once({"model": "a"}, folder, measure)
    measured
    {'ttft_ms': 60.0}
    >>> latency_once({"model": "a"}, folder, measure)
    {'ttft_ms': 60.0}
    """
    path, mark = Path(folder) / "latency.json", Path(folder) / "latency_of.txt"
    if path.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == metrics["model"]:
        return json.loads(path.read_text(encoding="utf-8"))
    path.unlink(missing_ok=True)
    write_text(mark, metrics["model"])
    return measure()


def results(metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a quick start: SCORES with audio and, as `<name>_no_audio`, without it, and TIMES; missing ones None.

    Examples
    --------
    >>> controls = {"normal": {"asr": {"wer": 0.123456}}, "zeros": {"asr": {"wer": 1.0}}}
    >>> line = results({"controls": controls}, {"ttft_ms": 61.0, "backend": "eager"})
    >>> line["wer"], line["wer_no_audio"], line["cider_d"], line["ttft_ms"], line["backend"]
    (0.1235, 1.0, None, 61.0, 'eager')
    """
    line = {}
    for name, score in SCORES.items():
        line[name] = score_of(metrics, "normal", *score)
        line[f"{name}_no_audio"] = score_of(metrics, "zeros", *score)
    return line | {name: _rounded(timing.get(name)) for name in TIMES}


def score_of(metrics: Mapping[str, Any], control: str, task: str, score: str) -> float | None:
    """A score of an evaluation to four digits; None if it was not computed.

    Examples
    --------
    >>> metrics = {"controls": {"normal": {"asr": {"wer": 0.123456}}}}
    >>> score_of(metrics, "normal", "asr", "wer"), score_of(metrics, "adapter_alone", "asr", "wer")
    (0.1235, None)
    """
    return _rounded(metrics["controls"].get(control, {}).get(task, {}).get(score))


def _rounded(value: Any) -> Any:
    """Round for reading; None for a missing score, whose value is a mapping with the reason."""
    if isinstance(value, Mapping):
        return None
    return round(value, 4) if isinstance(value, float) else value


def print_summary(metrics: Mapping[str, Any], timing: Mapping[str, Any], report: str | Path) -> None:
    """Print the table of an evaluation, the latency, and where the report is.

    Examples
    --------
    >>> metrics = {"controls": {"normal": {"age": {"type": "regression", "items": 3, "mae": 4.0}}}}
    >>> timing = {"ttft_ms": 61.0, "tpot_ms": 22.1, "tpot_ms_eager": 27.3, "token_match": 1.0, "backend": "aoti"}
    >>> print_summary(metrics, timing, "/results/report.html")
    <BLANKLINE>
    | task | items | score | with audio |
    | --- | --- | --- | --- |
    | age | 3 | MAE ↓ | 4.000 |
    <BLANKLINE>
    latency: 61 ms to the first token, then 22.1 ms per token with aoti (27.3 ms eager, 100% of tokens equal)
    report: /results/report.html
    """
    print(f"\n{markdown_table(metrics)}\n")
    tokens = f"{timing['tpot_ms']:.1f} ms per token with {timing['backend']}"
    print(f"latency: {timing['ttft_ms']:.0f} ms to the first token, then {tokens} ", end="")
    print(f"({timing['tpot_ms_eager']:.1f} ms eager, {timing['token_match']:.0%} of tokens equal)")
    print(f"report: {Path(report).resolve()}")
