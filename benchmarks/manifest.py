"""How long does it take to open a manifest of millions of rows, and how much memory do four DataLoader workers add?

    python benchmarks/manifest.py                     # 5 million rows; needs about 2 GB of disk while it runs

`ManifestTable`, with half of the rows selected by task, is compared with SpeechBrain's `DynamicItemDataset.from_json`.
The latter reads only the first --reference_rows, because it keeps all rows as Python objects. Each is opened in a new
process, which then reads random rows with a DataLoader of four workers. Memory is in MB, from
/proc/<pid>/smaps_rollup: `rss` is resident memory; `pss` divides memory that several processes map among them;
`anonymous` is `pss` without the pages of files, which the kernel can drop at any time. The last line of standard output
is one JSON object.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

WORKERS, READ = 4, 20_000


def synthetic_rows(count: int) -> Iterator[dict]:
    """Rows as large as those of a question answering corpus, with a field that is not in the schema."""
    words = "a dog barks while rain falls on a tin roof and two people talk about the weather".split()
    for number in range(count):
        yield {
            "id": f"clip{number // 2:08d}-{number % 2}",
            "audio": f"audio/{number // 2000:05d}/clip{number // 2:08d}.flac",
            "duration": 2.0 + number % 80 / 10,
            "task": "asr" if number % 2 else "caption",
            "instruction": "Write down what is said." if number % 2 else "Describe what can be heard in this clip.",
            "target": " ".join(words[(number + i) % len(words)] for i in range(8 + number % 9)),
            "dataset": "synthetic",
            "split": "train",
            "speaker": f"speaker{number % 5000}",
            "snr": number % 40 / 2,
        }


def memory(pids: Sequence[int]) -> dict[str, float]:
    """Sum over processes, in MB."""
    fields = {"rss": "Rss", "pss": "Pss", "anonymous": "Pss_Anon"}
    sums = dict.fromkeys(fields, 0)
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        for name, field in fields.items():
            sums[name] += values[field]
    return {name: round(kb / 1024, 1) for name, kb in sums.items()}


def open_table(file: str) -> Sequence:
    """Open the table and select rows by task."""
    from audiolm_lite.data.manifest_table import ManifestTable
    from audiolm_lite.data.selected_rows import SelectedRows

    table = ManifestTable(file)
    return SelectedRows([table], [table.select(["asr"])])


def open_reference(file: str) -> Sequence:
    """Open SpeechBrain's dataset of the same rows."""
    from speechbrain.dataio.dataset import DynamicItemDataset

    return DynamicItemDataset.from_json(file, output_keys=["id", "audio", "duration", "task", "instruction", "target"])


def measure(open_rows: Callable[[str], Sequence], file: str) -> dict:
    """Open the rows in this process, which must be new, then read random rows with workers."""
    from torch.utils.data import DataLoader

    import audiolm_lite  # noqa: F401  makes torchaudio importable, which SpeechBrain imports

    # imports are not part of opening
    importlib.import_module(
        "audiolm_lite.data.selected_rows" if open_rows is open_table else "speechbrain.dataio.dataset"
    )
    result = {"before_mb": memory([os.getpid()])}
    began = time.perf_counter()
    rows = open_rows(file)
    first = rows[0], rows[len(rows) - 1]
    result["open_seconds"] = round(time.perf_counter() - began, 3)
    assert all(row["target"] for row in first)
    result["opened_mb"] = memory([os.getpid()])
    order = np.random.default_rng(0).integers(0, len(rows), READ).tolist()
    loader = DataLoader(rows, batch_size=100, sampler=order, collate_fn=list, num_workers=WORKERS)
    began, batches = time.perf_counter(), iter(loader)
    for _ in range(READ // 100 - 2 * WORKERS):  # the rest keeps all workers alive
        next(batches)
    result["rows_per_second"] = round(READ / (time.perf_counter() - began))
    result["workers_mb"] = memory([worker.pid for worker in batches._workers])
    return result


def measure_in_new_process(kind: str, file: Path) -> dict:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--measure", kind, "--file", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write the rows, measure both, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument(
        "--reference_rows", type=int, default=200_000, help="for SpeechBrain; 5 million need tens of GB"
    )
    parser.add_argument("--folder", type=Path, help="where the rows are written; default: a temporary folder")
    parser.add_argument("--measure", choices=["here", "speechbrain"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(open_table if options.measure == "here" else open_reference, options.file)))
        return

    folder = Path(tempfile.mkdtemp(prefix="manifest", dir=options.folder))
    try:
        with (folder / "rows.jsonl").open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in synthetic_rows(options.rows))
        reference = {row.pop("id"): row for row in synthetic_rows(min(options.rows, options.reference_rows))}
        (folder / "rows.json").write_text(json.dumps(reference))
        counted = len(reference)
        del reference
        print("building the table ...", file=sys.stderr)
        began = time.perf_counter()
        built = measure_in_new_process("here", folder / "rows.jsonl")  # also builds the table
        build_seconds = time.perf_counter() - began - (READ / built["rows_per_second"])
        here = measure_in_new_process("here", folder / "rows.jsonl")
        speechbrain = measure_in_new_process("speechbrain", folder / "rows.json")
        sizes = {
            "manifest_mb": round((folder / "rows.jsonl").stat().st_size / 2**20),
            "table_mb": round((folder / ".rows.jsonl.arrow").stat().st_size / 2**20),
        }
    finally:
        shutil.rmtree(folder)
    for name, rows, result in (("here", options.rows, here), ("speechbrain", counted, speechbrain)):
        opened, before = result["opened_mb"]["rss"], result["before_mb"]["rss"]
        workers = result["workers_mb"]["anonymous"]
        print(f"{name}: {rows} rows opened in {result['open_seconds']:.2f} s")
        print(f"    process {opened:.0f} MB (before {before:.0f})")
        print(f"    {WORKERS} workers {workers:.0f} MB together, {result['rows_per_second']} rows/s")
    print(
        json.dumps(
            {
                "rows": options.rows,
                **sizes,
                "build_seconds": round(build_seconds, 1),
                "here": here,
                "speechbrain": {"measured_rows": counted, **speechbrain},
            }
        )
    )


if __name__ == "__main__":
    main()
