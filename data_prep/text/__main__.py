"""Show what steps of text normalisation would change: python -m data_prep.text korean_spoken punctuation --file FILE

FILE is a manifest (the targets of its ASR rows are shown) or plain text, a line a transcript. Nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.text import STEPS, normaliser


def main(argv: list[str]) -> None:
    """Print changed lines before and after, and how many change or become empty."""
    listed = "\n".join(f"  {name:<18} {step.__doc__.splitlines()[0]}" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.text", description=__doc__, epilog=f"steps:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("steps", nargs="+", metavar="STEP", help="in the order of their use")
    parser.add_argument("--file", type=Path, required=True, help="manifest (JSON lines) or text")
    parser.add_argument("--show", type=int, default=20, help="changed lines to print (default 20)")
    options = parser.parse_args(argv)
    normalise = normaliser(options.steps)
    lines = changed = empty = 0
    try:
        for number, before in _texts(options.file):
            after = normalise(before)
            lines += 1
            changed += after != before
            empty += not after
            if after != before and changed <= options.show:
                print(f"line {number}\n  - {before}\n  + {after}")
    except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor, where it begins as it, JSON
        sys.exit(f"{options.file}, after line {lines}: {error}; give UTF-8 text or a manifest")
    print(f"{changed} of {lines} transcripts change{'' if changed <= options.show else f', {options.show} are shown'}; "
          f"{empty} are empty afterwards")  # fmt: skip


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """(number of the line, transcript)."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("{"):
                row = json.loads(line)
                if row.get("task") == "asr":
                    yield number, row["target"]
            elif line.strip():
                yield number, line.rstrip("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
