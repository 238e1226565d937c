"""Statistics of manifests: hours, durations, text lengths, characters, sample rates, and faults.

Prints tables, and writes a picture (.png) and a report (.html, one file without external resources).
"""

import argparse
import base64
import hashlib
import io
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, audio_duration, audio_header
from audiolm_lite.config.errors import run_command
from audiolm_lite.data.manifest import audio_path, iterate_manifest
from audiolm_lite.storage.atomic import write_bytes, write_text
from data_prep.checks import in_threads
from data_prep.tables import format_table

# Headers read for the sample rates. If there are more clips, this many are sampled with a fixed seed.
MAX_HEADERS = 2000
# Longest table, largest values first; the title has the full number of lines.
TOP = 20

# Fields whose seconds of audio are summed, with the unit of the tables.
UNITS = {"dataset": ("hours", 3600), "task": ("hours", 3600), "language": ("hours", 3600), "speaker": ("minutes", 60)}


class Table(NamedTuple):
    """A table of the report: title, columns, and rows of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Statistics:
    """Counts over manifests; a clip (file and segment) counts once, however many rows are about it.

    Attributes
    ----------
    rows, clips : int
        Number of rows and of clips.
    seconds : dict of Counter
        Seconds of audio by "dataset" and split, "task", "speaker" (with the dataset) and "language".
    durations : Counter
        Clips of each duration, in hundredths of a second.
    lengths : Counter
        Targets of each length, in characters.
    characters : Counter
        Count of each character in all targets.
    rates : Counter
        Clips of each (sample rate in Hz, channels), among those whose header was read.
    faults : list of str
        Invalid lines of manifests, and audio files without a usable header.
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
    """Read manifests row by row, and headers of audio files for sample rates and missing durations.

    Parameters
    ----------
    manifests : sequence of path
        JSON-lines manifests.

    Returns
    -------
    Statistics
        Errors in lines and files are listed in `faults`.

    Raises
    ------
    ManifestError
        A manifest cannot be read at all.

    Examples
    --------
    >>> from audiolm_lite.data.manifest import write_manifest
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> row = {"id": "1", "audio": "1.wav", "duration": 1.5, "task": "asr", "instruction": "Transcribe."}
    >>> _ = write_manifest(file, [{**row, "target": "hello", "dataset": "d", "split": "train"}])
    >>> statistics = collect([file])
    >>> statistics.clips, dict(statistics.seconds["task"]), statistics.characters["l"]
    (1, {'asr': 1.5}, 2)
    >>> len(statistics.faults)  # the audio file does not exist
    1
    """
    statistics, generator = Statistics(), random.Random(0)
    seen: set[bytes] = set()  # hashes: about 60 bytes per clip and task
    sample: list[Path] = []
    for manifest in manifests:
        rejects: list[dict] = []
        for row in tqdm(iterate_manifest(manifest, rejects), desc=str(manifest), unit=" rows"):
            statistics.rows += 1
            statistics.lengths[len(row["target"])] += 1
            statistics.characters.update(row["target"])
            file = audio_path(manifest, row)
            clip = f"{file}\0{row['start']}\0{row['duration']}\0{row.get('channel')}"
            if not (new := _is_new(clip, seen)) and not _is_new(f"{clip}\0{row['task']}", seen):
                continue
            seconds = _seconds(row, file, statistics.faults if new else [])
            statistics.seconds["task"][row["task"]] += seconds
            if new:
                _is_new(f"{clip}\0{row['task']}", seen)
                _count_clip(statistics, row, seconds)
                if len(sample) < MAX_HEADERS:
                    sample.append(file)
                elif (index := generator.randrange(statistics.clips)) < MAX_HEADERS:
                    sample[index] = file
        statistics.faults += [entry["reason"] for entry in rejects]
    for _, header in in_threads(audio_header, sample):
        try:
            rate, _, channels = header.result()
            statistics.rates[rate, channels] += 1
        except AudioError as error:
            statistics.faults.append(str(error))
    statistics.faults = list(dict.fromkeys(statistics.faults))
    return statistics


def _is_new(name: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _seconds(row: dict[str, Any], file: Path, faults: list[str]) -> float:
    """Duration of a row's audio; if neither row nor file gives it, 0, and a fault is added."""
    if row["duration"] is not None:
        return row["duration"]
    try:
        return audio_duration(file, row["start"])
    except AudioError as error:
        faults.append(str(error))
        return 0.0


def _count_clip(statistics: Statistics, row: dict[str, Any], seconds: float) -> None:
    statistics.clips += 1
    statistics.durations[round(100 * seconds)] += 1
    statistics.seconds["dataset"][row["dataset"], row["split"]] += seconds
    statistics.seconds["language"][row["language"] or "none"] += seconds
    if row["speaker"]:
        statistics.seconds["speaker"][row["dataset"], row["speaker"]] += seconds


def tables(statistics: Statistics) -> list[Table]:
    """All tables of the report.

    Examples
    --------
    >>> statistics = Statistics(rows=2, clips=1, durations=Counter({150: 1}), lengths=Counter({5: 2}))
    >>> statistics.seconds["dataset"]["d", "train"] = 1800
    >>> for table in tables(statistics)[::2]:
    ...     print(f"{table.title}\\n{format_table(table.header, table.rows)}")
    Total
    rows  clips  hours  speakers  faults
       2      1   0.50         0       0
    hours by dataset
    dataset  split  hours
    d        train   0.50
    """
    hours = sum(statistics.seconds["dataset"].values()) / 3600
    result = [
        Table("Total", ["rows", "clips", "hours", "speakers", "faults"],
              [[statistics.rows, statistics.clips, hours, len(statistics.seconds["speaker"]), len(statistics.faults)]]),
        Table("Durations and texts", ["", "minimum", "5 %", "median", "95 %", "maximum", "mean"],
              [["seconds per clip", *_spread(statistics.durations, 0.01)],
               ["characters per target", *_spread(statistics.lengths, 1)]]),
    ]  # fmt: skip
    for name, (unit, seconds) in UNITS.items():
        counts = statistics.seconds[name]
        rows = [[*_names(key), value / seconds] for key, value in counts.most_common(TOP)]
        header = {"dataset": ["dataset", "split"], "speaker": ["dataset", "speaker"]}.get(name, [name])
        result.append(Table(_title(f"{unit} by {name}", len(rows), len(counts)), [*header, unit], rows))
    read = statistics.rates.total()
    title = f"Sample rates ({'all' if read == statistics.clips else f'{read:,} sampled of {statistics.clips:,}'} clips)"
    result.append(Table(title, ["Hz", "channels", "clips"], [[*key, n] for key, n in statistics.rates.most_common()]))
    ordered = statistics.characters.most_common()
    for kind, part in (("most frequent", ordered[:TOP]), ("rarest", ordered[TOP:][-TOP:])):
        rows = [[_printable(c), f"U+{ord(c):04X}", unicodedata.name(c, ""), n] for c, n in part]
        result.append(
            Table(f"Characters of targets, the {kind} of {len(ordered):,}", ["", "code", "name", "count"], rows)
        )
    if statistics.faults:
        rows = [[fault] for fault in statistics.faults[:TOP]]
        result.append(Table(_title("Faults", len(rows), len(statistics.faults)), ["fault"], rows))
    return [table for table in result if table.rows]


def _names(key: str | tuple[str, str]) -> list[str]:
    return [key] if isinstance(key, str) else list(key)


def _title(text: str, shown: int, total: int) -> str:
    return text if shown == total else f"{text}, {shown} of {total:,}"


def _printable(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else ""


def _spread(counts: Counter, unit: float) -> list[float]:
    """Minimum, 5 %, median, 95 %, maximum and mean of counted integers, times `unit`."""
    values, total = sorted(counts), counts.total()
    if not total:
        return [0.0] * 6
    quantiles, remaining, passed = [], iter(values), 0
    value = values[0]
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        while passed < max(1, share * total):
            value = next(remaining)
            passed += counts[value]
        quantiles.append(value * unit)
    return [*map(float, quantiles), sum(value * n for value, n in counts.items()) * unit / total]


def draw(statistics: Statistics) -> bytes:
    """PNG with six panels: durations, text lengths, hours by dataset and task, minutes by speaker, and sample rates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", "Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "Malgun Gothic", "AppleGothic"]
    with plt.rc_context({"font.family": [name for name in fonts if name in installed], "font.size": 9}):
        figure, axes = plt.subplots(3, 2, figsize=(11, 12), layout="constrained")
        _histogram(axes[0, 0], statistics.durations, 0.01, "duration (s)", "clips")
        _histogram(axes[0, 1], statistics.lengths, 1, "characters of the target", "rows")
        for axis, name in ((axes[1, 0], "dataset"), (axes[1, 1], "task"), (axes[2, 0], "speaker")):
            counts, (unit, seconds) = statistics.seconds[name], UNITS[name]
            bars = [(" ".join(_names(key)), value / seconds) for key, value in counts.most_common(TOP)]
            _bars(axis, bars, _title(f"{unit} by {name}", len(bars), len(counts)))
        rates = [(f"{rate:,} Hz, {channels} ch.", n) for (rate, channels), n in statistics.rates.most_common(TOP)]
        _bars(axes[2, 1], rates, "clips by sample rate")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return picture.getvalue()


def _histogram(axis: Any, counts: Counter, unit: float, label: str, counted: str) -> None:
    values = [value * unit for value in counts]
    axis.hist(values, bins=min(60, max(1, len(values))), weights=list(counts.values()), color="#1f4e79")
    axis.set(xlabel=label, ylabel=counted, xlim=(0, None))
    axis.grid(alpha=0.3)


def _bars(axis: Any, bars: Sequence[tuple[str, float]], title: str) -> None:
    names = [name if len(name) <= 32 else f"{name[:31]}…" for name, _ in bars]
    rectangles = axis.barh(range(len(bars)), [value for _, value in bars], color="#1f4e79")
    axis.bar_label(
        rectangles, [f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for _, value in bars], padding=3
    )
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_title(title)


def page(manifests: Sequence[str | Path], report: Iterable[Table], picture: bytes) -> str:
    """The report as one HTML page without external resources.

    Examples
    --------
    >>> html = page(["train.jsonl"], [Table("Total", ["rows", "hours"], [[2, 0.5]])], picture=b"")
    >>> print(html[html.index("<h2>") :].strip())
    <h2>Total</h2><table><tr>
    <th>rows</th>
    <th>hours</th>
    </tr>
    </tr><td class=n>2</td><td class=n>0.50</td>
    </table>
    """
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


def main(argv: Sequence[str]) -> None:
    """Run `MANIFEST ... [--output PATH]`: print the tables, write the picture and the report."""
    parser = argparse.ArgumentParser(
        prog="audiolm-lite stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifests", metavar="MANIFEST", nargs="+", type=Path, help="JSON lines")
    parser.add_argument(
        "--output", type=Path, help="path without extension; default: stats, next to the first manifest"
    )
    options = parser.parse_args(argv)
    output = options.output or options.manifests[0].parent / "stats"
    statistics = collect(options.manifests)
    report, picture = tables(statistics), draw(statistics)
    for table in report:
        print(f"{table.title}\n{format_table(table.header, table.rows)}\n")
    write_bytes(output.with_name(output.name + ".png"), picture)
    write_text(output.with_name(output.name + ".html"), page(options.manifests, report, picture))
    print(f"written: {output}.png, {output}.html")


if __name__ == "__main__":
    run_command(main)
