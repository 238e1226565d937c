"""The report of an evaluation: one HTML page without external resources, and the results as a Markdown table."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from audiolm_lite.data.controls import TRANSCRIPT
from audiolm_lite.evaluation.metrics.family import Column
from audiolm_lite.evaluation.metrics.registry import FAMILIES
from audiolm_lite.storage.atomic import write_text

CONTROLS = {
    "normal": "with audio",
    "zeros": "no audio",
    "shuffled": "another clip's audio",
    "adapter_alone": "adapter alone",
    "transcript": "recogniser alone",
}
EXAMPLES_PER_TASK = 4


def result_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay the results out as a table: one row per score, one column per control, 95 % intervals in brackets.

    Parameters
    ----------
    metrics : mapping
        Result of `runner.evaluate`.

    Returns
    -------
    header : list of str
        Titles of the columns.
    rows : list of list of str
        Text of the cells.

    Examples
    --------
    >>> age = {"type": "regression", "items": 3, "mae": 4.0, "interval": {"mae": [2.0, 6.0]}}
    >>> header, rows = result_rows({"controls": {"normal": {"age": age}, "zeros": {"age": {**age, "mae": 9.0}}}})
    >>> header
    ['task', 'items', 'score', 'with audio', 'no audio']
    >>> rows
    [['age', '3', 'MAE ↓', '4.000 [2.000, 6.000]', '9.000 [2.000, 6.000]']]
    """
    controls = list(metrics["controls"])
    header = ["task", "items", "score", *(CONTROLS.get(control, control) for control in controls)]
    rows = []
    tables = [_with_languages(metrics["controls"][control]) for control in controls]
    for task in dict.fromkeys(task for table in tables for task in table):
        results = [table.get(task, {}) for table in tables]
        first = next(result for result in results if result)
        columns = FAMILIES[first["type"]].columns
        for column in sorted(columns, key=lambda column: isinstance(first.get(column.name), Mapping)):  # missing: last
            if any(column.name in result for result in results):
                items = _items(first)
                unit = ", %" if column.percent else ""
                cells = [_cell(result, column) for result in results]
                rows.append([task, items, f"{column.title}{unit} {column.better}", *cells])
    return header, rows


def _with_languages(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Scores of the tasks, each followed by those of its languages, as "task, code", if it has several."""
    table: dict[str, Mapping[str, Any]] = {}
    for task, result in scores.items():
        table[task] = result
        for code, of_language in result.get("per_language", {}).items():
            table[f"{task}, {code}"] = {"type": result["type"], **of_language}
    return table


def _items(result: Mapping[str, Any]) -> str:
    """Number of scored items, of all items if rows were left out."""
    items, left_out = result.get("items", result.get("utterances")), result.get("left_out", 0)
    return f"{items} of {items + left_out}" if left_out else str(items)


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
    """Format the results of `runner.evaluate` as a Markdown table.

    Examples
    --------
    >>> print(markdown_table({"controls": {"normal": {"age": {"type": "regression", "items": 3, "mae": 4.0}}}}))
    | task | items | score | with audio |
    | --- | --- | --- | --- |
    | age | 3 | MAE ↓ | 4.000 |
    """
    header, rows = result_rows(metrics)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def stopped_answers(metrics: Mapping[str, Any]) -> list[str]:
    """Return lines per control about answers that a guard of generation has stopped or given, if there are any.

    Examples
    --------
    >>> age = {"type": "regression", "items": 30, "mae": 4.0, "stopped": {"loop": 2, "limit": 0}}
    >>> stopped_answers({"controls": {"normal": {"age": age}}})
    ['Stopped answers, with audio: age 2 of 30 (2 looped, 0 at their limit of tokens).']
    """
    lines = []
    for control, tasks in metrics["controls"].items():
        counts = []
        for task, result in tasks.items():
            loop, limit = (result.get("stopped", {}).get(reason, 0) for reason in ("loop", "limit"))
            if loop or limit:
                items = result.get("items", result.get("utterances"))
                counts.append(f"{task} {loop + limit} of {items} ({loop} looped, {limit} at their limit of tokens)")
        if counts:
            lines.append(f"Stopped answers, {CONTROLS.get(control, control)}: {'; '.join(counts)}.")
        silent = [
            f"{task} {result['silent']} of {result.get('items', result.get('utterances'))}"
            for task, result in tasks.items()
            if result.get("silent")
        ]
        if silent:
            names = CONTROLS.get(control, control)
            lines.append(f"Answered without the model, clips below silence_level, {names}: {'; '.join(silent)}.")
    return lines


def left_out_rows(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line per control about rows that were left out, if there are any.

    Examples
    --------
    >>> left_out = {"count": 2, "kinds": {"unreadable": 2}, "rows": {"7": "a.wav: cut off", "9": "b.wav: empty"}}
    >>> left_out_rows({"left_out": {"normal": left_out}})
    ['Left out, with audio: 2 rows (2 unreadable), the first: 7 (a.wav: cut off).']
    """
    lines = []
    for control, entry in metrics.get("left_out", {}).items():
        if entry["count"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in entry["kinds"].items())
            name, reason = next(iter(entry["rows"].items()))
            shown = CONTROLS.get(control, control)
            lines.append(f"Left out, {shown}: {entry['count']} rows ({kinds}), the first: {name} ({reason}).")
    return lines


def prompt_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line per field that prompts may have besides question and audio: how many rows have it.

    Examples
    --------
    >>> for note in prompt_notes({"controls": {}, "prompt_fields": {"transcript": {"with": 0, "without": 30}}}):
    ...     print(note)
    Prompts: 0 of 30 rows have the field transcript.
    """
    lines = []
    for field, count in metrics.get("prompt_fields", {}).items():
        line = f"Prompts: {count['with']} of {sum(count.values())} rows have the field {field}"
        changed = {"zeros": "it is empty without audio", "shuffled": "with another clip's audio it is that clip's"}
        given = [text for control, text in changed.items() if control in metrics["controls"]]
        shown = given if field == TRANSCRIPT and count["with"] else []
        lines.append("; ".join([line, *shown]) + ".")
    return lines


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    predictions: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    latency: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of an evaluation: one HTML file that loads nothing else.

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
        Paragraphs below the heading, for example the model, the data and limits of the results.
    latency : sequence of mappings
        Results of `deploy.latency.measure`, one per table column.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> answer = {"id": "1", "control": "normal", "task": "age", "instruction": "How old?", "target": "30"}
    >>> _ = (folder / "predictions.jsonl").write_text(json.dumps({**answer, "prediction": "about 34"}))
    >>> metrics = {"controls": {"normal": {"age": {"type": "regression", "items": 1, "mae": 4.0}}}}
    >>> write_report(folder / "report.html", metrics, folder / "predictions.jsonl", title="Ages")
    >>> page = (folder / "report.html").read_text(encoding="utf-8")
    >>> [text in page for text in ("<h1>Ages</h1>", "4.000", "about 34")]
    [True, True, True]
    """
    sections = ["<h2>Results</h2>", _table(*result_rows(metrics), numeric=3), _remarks(metrics)]
    if latency:
        sections += ["<h2>Latency</h2>", _latency_table(latency)]
    sections += ["<h2>Example answers</h2>", _examples(predictions)]
    notes_html = "".join(f"<p>{escape(note)}</p>" for note in notes)
    write_text(path, _PAGE.format(title=escape(title), style=_STYLE, notes=notes_html, body="\n".join(sections)))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int) -> str:
    """HTML table; columns from `numeric` on are aligned right, and a repeated first cell is left empty."""
    head = "".join(f'<th{_right(i, numeric)} scope="col">{escape(cell)}</th>' for i, cell in enumerate(header))
    body, previous = [], None
    for row in rows:
        cells = ["" if row[0] == previous else row[0], *row[1:]]
        previous = row[0]
        columns = (f"<td{_right(i, numeric)}>{escape(cell)}</td>" for i, cell in enumerate(cells))
        body.append("<tr>" + "".join(columns) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _right(column: int, numeric: int) -> str:
    return ' class="n"' if column >= numeric else ""


def _remarks(metrics: Mapping[str, Any]) -> str:
    """Remarks on the results table: intervals, unparsed answers, missing metrics, normalisers."""
    remarks = [
        "Brackets: 95 % interval over the test items, Wilson's for proportions and a bootstrap for other scores."
    ]
    remarks += [*prompt_notes(metrics), *stopped_answers(metrics), *left_out_rows(metrics)]
    missing: dict[str, dict] = {}
    if "adapter_alone" in metrics["controls"]:
        remarks.append("Adapter alone: its greedy CTC transcript, without the LLM; other tasks have no such answer.")
    if TRANSCRIPT in metrics["controls"]:
        remarks.append("Recogniser alone: the field transcript of the rows, without any audio language model.")
    for control, tasks in metrics["controls"].items():
        for task, result in tasks.items():
            missing |= {name: v for name, v in result.items() if isinstance(v, dict) and "missing" in v}
            if result.get("unparsed"):
                effect = f"left out, or an error of {result['penalty']:g}" if "penalty" in result else "wrong"
                count = f"{result['unparsed']} of {result['items']} answers could not be parsed ({effect})"
                remarks.append(f"{task}, {CONTROLS.get(control, control)}: {count}.")
            if control != "normal":
                continue
            if "normaliser" in result and "words" in result and result["type"] == "asr":
                size = f"{result['words']} words" if result["words"] else f"{result['characters']} characters"
                remarks.append(f"{task}: text normaliser “{result['normaliser']}”, {size}.")
            if isinstance(rtfx := result.get("speed", {}).get("rtfx"), float):
                remarks.append(f"{task}: {rtfx:.1f} seconds of audio per second (RTFx), with the encoder.")
            if "majority_accuracy" in result:
                accuracy = f"{100 * result['majority_accuracy']:.1f} %"
                remarks.append(f"{task}: always answering the most frequent label gives {accuracy}.")
            if "constant_mae" in result:
                remarks.append(f"{task}: always answering the median gives an MAE of {result['constant_mae']:.3f}.")
    remarks += [f"{name} is missing: {v['missing']} Remedy: {v['command']}" for name, v in missing.items()]
    return '<ul class="remarks">' + "".join(f"<li>{escape(remark)}</li>" for remark in remarks) + "</ul>"


_LATENCY = [
    ("ttft_ms", "time to first token, ms (median)"),
    ("ttft_ms_p90", "time to first token, ms (p90)"),
    ("tpot_ms", "time per output token, ms (median)"),
    ("tpot_ms_p90", "time per output token, ms (p90)"),
    ("tpot_ms_eager", "time per output token, eager, ms (median)"),
    ("token_match", "fraction of tokens equal to eager"),
    ("peak_memory_mb", "peak memory, without mapped files, MB"),
    ("mapped_files_mb", "mapped files (libraries, weights used in place), MB"),
    ("compile_seconds", "compilation, s"),
    ("batch_size", "batch size"),
    ("prompt_tokens", "prompt tokens"),
    ("dtype", "dtype"),
    ("device", "device"),
]


def _latency_table(latency: Sequence[Mapping[str, Any]]) -> str:
    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"

    rows = [[label, *(text(run.get(name, "–")) for run in latency)] for name, label in _LATENCY]
    return _table(["", *(run["backend"] for run in latency)], rows, numeric=1)


def _examples(predictions: str | Path) -> str:
    """Some clips of each task, spread evenly over the test set: the reference and the answer under each control."""
    with Path(predictions).open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    clips: dict[str, dict[str, dict]] = {}
    for record in records:
        clips.setdefault(record["task"], {}).setdefault(record["id"], {})[record["control"]] = record
    controls = list(dict.fromkeys(record["control"] for record in records))
    rows = []
    for task, group in clips.items():
        ids = list(group)
        count = min(EXAMPLES_PER_TASK, len(ids))
        for name in [ids[i * len(ids) // count] for i in range(count)]:
            first = next(iter(group[name].values()))
            answers = [_answer(group[name].get(control)) for control in controls]
            rows.append([task, first["instruction"], first["target"], *answers])
    header = ["task", "question", "reference", *(CONTROLS.get(control, control) for control in controls)]
    return _table(header, rows, numeric=len(header))


def _answer(record: Mapping[str, Any] | None) -> str:
    """Text of an answer, with a mark if it was cut."""
    if record is None:
        return "–"
    cut = {"length_limit": " … (cut at its limit of tokens)", "loop": " … (cut, it repeated itself)"}
    return (record["prediction"] or "(empty)") + cut.get(str(record.get("finish_reason")), "")


_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6675; --line: #d9dee5; --back: #ffffff; --band: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #9aa5b4; --line: #39424e; --back: #14181d;
  --band: #1b2027; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1060px;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; margin: .4rem 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td:first-child { font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--band); } .remarks { color: var(--soft); font-size: .87rem; padding-left: 1.1rem; }
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
