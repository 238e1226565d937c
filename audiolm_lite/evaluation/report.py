"""An evaluation as one page: report.html without external resources, and the results as a Markdown table."""

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

CONTROLS = {"normal": "with audio", "zeros": "no audio", "shuffled": "another clip's audio"}


class Column(NamedTuple):
    """A score as the tables show it."""

    name: str
    title: str
    percent: bool
    better: str  # "↓" or "↑"


# Score type -> what the tables show of it; metrics.json has everything.
SHOWN = {
    "asr": [Column("wer", "WER", True, "↓"), Column("cer", "CER", True, "↓")],
    "classification": [Column("accuracy", "accuracy", True, "↑"), Column("macro_f1", "macro F1", True, "↑")],
    "multi_label": [
        Column("f1", "F1 of an item", True, "↑"),
        Column("micro_f1", "micro F1", True, "↑"),
        Column("macro_f1", "macro F1", True, "↑"),
    ],
    "matched_caption": [Column("accuracy", "accuracy", True, "↑"), Column("macro_f1", "macro F1", True, "↑")],
    "regression": [Column("mae", "MAE", False, "↓"), Column("mae_with_penalty", "MAE, unparsed charged", False, "↓")],
    "captioning": [
        Column("cider_d", "CIDEr-D", False, "↑"),
        Column("bleu_4", "BLEU-4", False, "↑"),
        Column("rouge_l", "ROUGE-L", False, "↑"),
        Column("meteor", "METEOR", False, "↑"),
        Column("spice", "SPICE", False, "↑"),
        Column("spider", "SPIDEr", False, "↑"),
        Column("fense", "FENSE", False, "↑"),
    ],
}


def result_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows (texts) of the results: a score a row, a control a column, 95 % intervals in brackets."""
    controls = list(metrics["controls"])
    header = ["task", "items", "score", *(CONTROLS.get(control, control) for control in controls)]
    rows = []
    for task in dict.fromkeys(task for scores in metrics["controls"].values() for task in scores):
        results = [metrics["controls"][control].get(task, {}) for control in controls]
        first = next(result for result in results if result)
        for column in SHOWN[first["type"]]:
            if any(column.name in result for result in results):
                items = first.get("items", first.get("utterances"))
                unit = ", %" if column.percent else ""
                cells = [_cell(result, column) for result in results]
                rows.append([task, str(items), f"{column.title}{unit} {column.better}", *cells])
    return header, rows


def _cell(result: Mapping[str, Any], column: Column) -> str:
    value = result.get(column.name)
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return "missing"
    digits = (lambda x: f"{100 * x:.1f}") if column.percent else (lambda x: f"{x:.3f}")
    if interval := result.get("interval", {}).get(column.name):
        return f"{digits(value)} [{digits(interval[0])}, {digits(interval[1])}]"
    return digits(value)


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """Results of `runner.evaluate` as a Markdown table."""
    header, rows = result_rows(metrics)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    predictions: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    losses: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    latency: Sequence[Mapping[str, Any]] = (),
    examples: int = 4,
) -> None:
    """Write an evaluation as one HTML file that loads nothing else.

    Parameters
    ----------
    path : path
        The file to write.
    metrics : mapping
        Result of `runner.evaluate`.
    predictions : path
        The `predictions.jsonl` of that evaluation.
    title : str
        Heading of the page.
    notes : sequence of str
        Paragraphs below the heading: what model, what data, what to bear in mind.
    losses : mapping, optional
        Curve's name (e.g. "stage 1") -> points (step, loss).
    latency : sequence of mappings
        Results of `deploy.latency.measure`, one a table column.
    examples : int
        Clips shown per task, spread evenly over the test set.
    """
    sections = ["<h2>Results</h2>", _table(*result_rows(metrics), numeric=3), _remarks(metrics)]
    if latency:
        sections += ["<h2>Latency</h2>", _latency_table(latency)]
    if losses:
        sections += ["<h2>Training loss</h2>", _curves(losses)]
    sections += ["<h2>Example answers</h2>", _examples(predictions, examples)]
    notes_html = "".join(f"<p>{escape(note)}</p>" for note in notes)
    page = _PAGE.format(title=escape(title), style=_STYLE, notes=notes_html, body="\n".join(filter(None, sections)))
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int) -> str:
    """HTML table; columns from `numeric` on are aligned on the right, a group's name stands in its first row only."""
    head = "".join(f'<th{_right(i, numeric)} scope="col">{escape(cell)}</th>' for i, cell in enumerate(header))
    body, above = [], None
    for row in rows:
        cells = ["" if row[0] == above else row[0], *row[1:]]
        above = row[0]
        columns = (f"<td{_right(i, numeric)}>{escape(cell)}</td>" for i, cell in enumerate(cells))
        body.append("<tr>" + "".join(columns) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _right(column: int, numeric: int) -> str:
    return ' class="n"' if column >= numeric else ""


def _remarks(metrics: Mapping[str, Any]) -> str:
    """What a reader must know beside the table: intervals, unparsed answers, missing metrics, normalisers."""
    remarks = ["Brackets: 95 % bootstrap interval over the test items."]
    missing = {}
    for control, tasks in metrics["controls"].items():
        for task, result in tasks.items():
            missing |= {name: v for name, v in result.items() if isinstance(v, dict) and "missing" in v}
            if result.get("unparsed"):
                effect = f"left out, or charged {result['penalty']:g}" if "penalty" in result else "wrong"
                count = f"{result['unparsed']} of {result['items']} answers could not be read ({effect})"
                remarks.append(f"{task}, {CONTROLS.get(control, control)}: {count}.")
            if control != "normal":
                continue
            if result["type"] == "asr":
                remarks.append(f"{task}: text normaliser “{result['normaliser']}”, {result['words']} words.")
            if "majority_accuracy" in result:
                share = f"{100 * result['majority_accuracy']:.1f} %"
                remarks.append(f"{task}: always naming the commonest label gives {share}.")
            if "constant_mae" in result:
                remarks.append(f"{task}: always naming the median gives an MAE of {result['constant_mae']:.3f}.")
    remarks += [f"{name} is missing: {v['missing']} To get it: {v['command']}" for name, v in missing.items()]
    return '<ul class="remarks">' + "".join(f"<li>{escape(remark)}</li>" for remark in remarks) + "</ul>"


_LATENCY = [
    ("ttft_ms", "time to first token, ms (median)"),
    ("ttft_ms_p90", "time to first token, ms (p90)"),
    ("tpot_ms", "time per further token, ms (median)"),
    ("tpot_ms_p90", "time per further token, ms (p90)"),
    ("tpot_ms_eager", "time per further token, eager, ms"),
    ("token_match", "tokens equal to eager"),
    ("peak_memory_mb", "peak memory, MB"),
    ("compile_seconds", "compilation, s"),
    ("batch_size", "batch size"),
    ("prompt_tokens", "prompt tokens"),
    ("dtype", "number format"),
    ("device", "device"),
]


def _latency_table(latency: Sequence[Mapping[str, Any]]) -> str:
    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"

    rows = [[label, *(text(run.get(name, "–")) for run in latency)] for name, label in _LATENCY]
    return _table(["", *(run["backend"] for run in latency)], rows, numeric=1)


def _curves(losses: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Line chart of the curves over step as SVG, on one scale."""
    width, height, left, bottom = 720, 260, 48, 30
    points = [point for curve in losses.values() for point in curve]
    last, top = max(step for step, _ in points) or 1, max(loss for _, loss in points) or 1

    def place(step: float, loss: float) -> tuple[float, float]:
        return left + (width - left - 10) * step / last, 10 + (height - bottom - 10) * (1 - loss / top)

    parts = []
    for tick in range(5):
        loss, step = top * tick / 4, last * tick / 4
        x, y = place(step, loss)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{step:.0f}</text>')
    for number, (name, curve) in enumerate(losses.items()):
        line = " ".join("{:.1f},{:.1f}".format(*place(step, loss)) for step, loss in curve)
        parts.append(f'<polyline class="c{number % 4}" points="{line}"/>')
        spot = f'x="{width - 14}" y="{24 + 16 * number}" text-anchor="end"'
        parts.append(f'<text class="c{number % 4}" {spot}>{escape(name)}</text>')
    label = escape("Training loss over optimiser steps: " + ", ".join(losses))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _examples(predictions: str | Path, count: int) -> str:
    """Some clips of each task, what was right and what the model said under each control."""
    with Path(predictions).open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    clips: dict[str, dict[str, dict]] = {}
    for record in records:
        clips.setdefault(record["task"], {}).setdefault(record["id"], {})[record["control"]] = record
    controls = list(dict.fromkeys(record["control"] for record in records))
    rows = []
    for task, group in clips.items():
        ids = list(group)
        for name in [ids[i * len(ids) // min(count, len(ids))] for i in range(min(count, len(ids)))]:
            first = next(iter(group[name].values()))
            said = [group[name].get(control, {}).get("prediction", "–") or "(nothing)" for control in controls]
            rows.append([task, first["instruction"], first["target"], *said])
    header = ["task", "question", "right", *(CONTROLS.get(control, control) for control in controls)]
    return _table(header, rows, numeric=len(header))


_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6675; --line: #d9dee5; --back: #ffffff; --band: #f5f7f9;
  --c0: #2563a8; --c1: #b4531a; --c2: #2f7d4f; --c3: #7a4fa3; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #9aa5b4; --line: #39424e; --back: #14181d;
  --band: #1b2027; --c0: #7db3ec; --c1: #eb9a63; --c2: #7cc79a; --c3: #c2a1e6; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1060px;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; margin: .4rem 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td:first-child { font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--band); } .remarks { color: var(--soft); font-size: .87rem; padding-left: 1.1rem; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); } .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.6; } polyline.c0 { stroke: var(--c0); } polyline.c1 { stroke: var(--c1); }
polyline.c2 { stroke: var(--c2); } polyline.c3 { stroke: var(--c3); } svg text.c0 { fill: var(--c0); }
svg text.c1 { fill: var(--c1); } svg text.c2 { fill: var(--c2); } svg text.c3 { fill: var(--c3); }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{notes}
{body}
</body>
</html>
"""
