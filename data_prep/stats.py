"""What a data set holds: python -m data_prep.stats train.jsonl [valid.jsonl ...] [--output folder/stats]

Prints tables and writes stats.png and stats.html (one file, no external resource) beside the first manifest.
"""

import argparse
import base64
import hashlib
import io
import os
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, audio_duration, audio_header
from audiolm_lite.data.manifest import audio_path, iterate_manifest
from data_prep.checks import in_threads
from data_prep.tables import format_table

# Headers read for the sample rates; of more clips than that, as many are drawn with equal chance and a fixed seed.
MAX_HEADERS = 2000
# Lines of a table, largest first: more cannot be read, and how many there are is said.
TOP = 20

# What is counted by seconds of audio, and in which unit it is shown.
UNITS = {"dataset": ("hours", 3600), "task": ("hours", 3600), "language": ("hours", 3600), "speaker": ("minutes", 60)}


class Table(NamedTuple):
    """A table of the report: what it shows, columns, and rows of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Statistics:
    """Counts over manifests; a clip (file and segment) counts once, whatever number of rows ask about it.

    Attributes
    ----------
    rows, clips : int
        How many there are.
    seconds : dict of Counter
        Seconds of audio by "dataset" and split, "task", "speaker" (with the dataset) and "language".
    durations : Counter
        Clips of each duration, in hundredths of a second.
    lengths : Counter
        Targets of each length, in characters.
    characters : Counter
        Of all targets.
    rates : Counter
        Clips of each (sample rate in Hz, channels), of those whose header was read.
    faults : list of str
        Manifest lines that break the schema and audio files without a usable header.
    """

    rows: int = 0
    clips: int = 0
    seconds: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in UNITS})
    durations: Counter = field(default_factory=Counter)
    lengths: Counter = field(default_factory=Counter)
    characters: Counter = field(default_factory=Counter)
    rates: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def collect(manifests: Sequence[str | Path]) -> Statistics:
    """Read manifests row by row; headers of audio for sample rates and where a row has no duration.

    Parameters
    ----------
    manifests : sequence of path
        JSON-lines manifests.

    Returns
    -------
    Statistics
        What is wrong with lines and files is in `faults`; their other counts stand.

    Raises
    ------
    ManifestError
        A manifest that cannot be read at all.
    """
    found, chance = Statistics(), random.Random(0)
    seen: set[bytes] = set()  # hashes: some 60 bytes a clip and task
    sample: list[Path] = []
    for manifest in manifests:
        rejects: list[dict] = []
        for row in tqdm(iterate_manifest(manifest, rejects), desc=str(manifest), unit=" rows"):
            found.rows += 1
            found.lengths[len(row["target"])] += 1
            found.characters.update(row["target"])
            file = audio_path(manifest, row)
            clip = f"{file}\0{row['start']}\0{row['duration']}"
            if not (new := _is_new(clip, seen)) and not _is_new(f"{clip}\0{row['task']}", seen):
                continue
            seconds = _seconds(row, file, found.faults if new else [])
            found.seconds["task"][row["task"]] += seconds
            if new:
                _is_new(f"{clip}\0{row['task']}", seen)
                _count_clip(found, row, seconds)
                if len(sample) < MAX_HEADERS:
                    sample.append(file)
                elif (place := chance.randrange(found.clips)) < MAX_HEADERS:
                    sample[place] = file
        found.faults += [entry["reason"] for entry in rejects]
    for _, header in in_threads(audio_header, sample):
        try:
            rate, _, channels = header.result()
            found.rates[rate, channels] += 1
        except AudioError as error:
            found.faults.append(str(error))
    found.faults = list(dict.fromkeys(found.faults))
    return found


def _is_new(name: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _seconds(row: dict[str, Any], file: Path, faults: list[str]) -> float:
    """Duration of a row's audio; 0 and a fault where neither the row nor the file tells it."""
    if row["duration"] is not None:
        return row["duration"]
    try:
        return audio_duration(file, row["start"])
    except AudioError as error:
        faults.append(str(error))
        return 0.0


def _count_clip(found: Statistics, row: dict[str, Any], seconds: float) -> None:
    found.clips += 1
    found.durations[round(100 * seconds)] += 1
    found.seconds["dataset"][row["dataset"], row["split"]] += seconds
    found.seconds["language"][row["language"] or "none"] += seconds
    if row["speaker"]:
        found.seconds["speaker"][row["dataset"], row["speaker"]] += seconds


def tables(found: Statistics) -> list[Table]:
    """All tables of the report."""
    hours = sum(found.seconds["dataset"].values()) / 3600
    made = [
        Table("Whole", ["rows", "clips", "hours", "speakers", "faults"],
              [[found.rows, found.clips, hours, len(found.seconds["speaker"]), len(found.faults)]]),
        Table("Durations and texts", ["", "least", "5 %", "median", "95 %", "most", "mean"],
              [["seconds a clip", *_spread(found.durations, 0.01)],
               ["characters a target", *_spread(found.lengths, 1)]]),
    ]  # fmt: skip
    for name, (unit, seconds) in UNITS.items():
        counts = found.seconds[name]
        rows = [[*_names(key), value / seconds] for key, value in counts.most_common(TOP)]
        header = {"dataset": ["dataset", "split"], "speaker": ["dataset", "speaker"]}.get(name, [name])
        made.append(Table(_title(f"{unit} by {name}", len(rows), len(counts)), [*header, unit], rows))
    read = found.rates.total()
    title = f"Sample rates ({'all' if read == found.clips else f'{read:,} drawn of {found.clips:,}'} clips)"
    made.append(Table(title, ["Hz", "channels", "clips"], [[*key, n] for key, n in found.rates.most_common()]))
    ordered = found.characters.most_common()
    for what, part in (("most frequent", ordered[:TOP]), ("rarest", ordered[TOP:][-TOP:])):
        rows = [[_printable(c), f"U+{ord(c):04X}", unicodedata.name(c, ""), n] for c, n in part]
        made.append(
            Table(f"Characters of targets, the {what} of {len(ordered):,}", ["", "code", "name", "count"], rows)
        )
    if found.faults:
        rows = [[fault] for fault in found.faults[:TOP]]
        made.append(Table(_title("Faults", len(rows), len(found.faults)), ["what and where"], rows))
    return [table for table in made if table.rows]


def _names(key: str | tuple[str, str]) -> list[str]:
    return [key] if isinstance(key, str) else list(key)


def _title(what: str, shown: int, there: int) -> str:
    return what if shown == there else f"{what}, {shown} of {there:,}"


def _printable(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else ""


def _spread(counts: Counter, unit: float) -> list[float]:
    """Least, 5 %, median, 95 %, most and mean of counted whole numbers, times `unit`."""
    values, total = sorted(counts), counts.total()
    if not total:
        return [0.0] * 6
    quantiles, place, passed = [], iter(values), 0
    value = values[0]
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        while passed < max(1, share * total):
            value = next(place)
            passed += counts[value]
        quantiles.append(value * unit)
    return [*map(float, quantiles), sum(value * n for value, n in counts.items()) * unit / total]


def draw(found: Statistics) -> bytes:
    """Six panels as a PNG: durations, text lengths, and hours by data set, task and speaker, and sample rates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    names = ["DejaVu Sans", "Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "Malgun Gothic", "AppleGothic"]
    with plt.rc_context({"font.family": [name for name in names if name in installed], "font.size": 9}):
        figure, axes = plt.subplots(3, 2, figsize=(11, 12), layout="constrained")
        _histogram(axes[0, 0], found.durations, 0.01, "duration (s)", "clips")
        _histogram(axes[0, 1], found.lengths, 1, "characters of the target", "rows")
        for axis, name in ((axes[1, 0], "dataset"), (axes[1, 1], "task"), (axes[2, 0], "speaker")):
            counts, (unit, seconds) = found.seconds[name], UNITS[name]
            bars = [(" ".join(_names(key)), value / seconds) for key, value in counts.most_common(TOP)]
            _bars(axis, bars, _title(f"{unit} by {name}", len(bars), len(counts)))
        rates = [(f"{rate:,} Hz, {channels} ch.", n) for (rate, channels), n in found.rates.most_common(TOP)]
        _bars(axes[2, 1], rates, "clips by sample rate")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return picture.getvalue()


def _histogram(axis: Any, counts: Counter, unit: float, label: str, of: str) -> None:
    values = [value * unit for value in counts]
    axis.hist(values, bins=min(60, max(1, len(values))), weights=list(counts.values()), color="#1f4e79")
    axis.set(xlabel=label, ylabel=of, xlim=(0, None))
    axis.grid(alpha=0.3)


def _bars(axis: Any, bars: Sequence[tuple[str, float]], title: str) -> None:
    names = [name if len(name) <= 32 else f"{name[:31]}…" for name, _ in bars]
    drawn = axis.barh(range(len(bars)), [value for _, value in bars], color="#1f4e79")
    axis.bar_label(
        drawn, [f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for _, value in bars], padding=3
    )
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_title(title)


def page(manifests: Sequence[str | Path], report: Iterable[Table], picture: bytes) -> str:
    """The report as one HTML page without external resources."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Statistics</title><style>",
        "body{font:15px/1.4 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}img{max-width:100%}",
        "table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;",
        "text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}</style>",
        f"<h1>Statistics</h1><p>{'<br>'.join(escape(str(manifest)) for manifest in manifests)}</p>",
        f'<img alt="Histograms and hours" src="data:image/png;base64,{base64.b64encode(picture).decode()}">',
    ]
    for table in report:
        parts.append(f"<h2>{escape(table.title)}</h2><table><tr>")
        parts += [f"<th>{escape(name)}</th>" for name in table.header]
        parts += ["</tr>" + "".join(_cell(cell) for cell in row) for row in [[], *table.rows]]
        parts.append("</table>")
    return "\n".join(parts) + "\n"


def _cell(cell: Any) -> str:
    if isinstance(cell, int | float):
        return f"<td class=n>{cell:,.2f}</td>" if isinstance(cell, float) else f"<td class=n>{cell:,}</td>"
    return f"<td>{escape(str(cell))}</td>"


def main(argv: list[str]) -> None:
    """Print the tables, write the picture and the page."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.stats", description="What manifests hold.")
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="path without ending (default: stats beside the first manifest)")
    options = parser.parse_args(argv)
    output = options.output or options.manifests[0].parent / "stats"
    found = collect(options.manifests)
    report, picture = tables(found), draw(found)
    for table in report:
        print(f"{table.title}\n{format_table(table.header, table.rows)}\n")
    _write(output.with_name(output.name + ".png"), picture)
    _write(output.with_name(output.name + ".html"), page(options.manifests, report, picture).encode())
    print(f"written: {output}.png, {output}.html")


def _write(file: Path, content: bytes) -> None:
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)


if __name__ == "__main__":
    main(sys.argv[1:])
