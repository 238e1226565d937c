"""Show what steps of text normalisation would change; nothing is written.

FILE is a manifest, whose ASR targets are shown, or plain text with one transcript per line.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiolm_lite.config.errors import UserError, run_command
from data_prep.text import STEPS, normaliser


def main(argv: Sequence[str]) -> None:
    """Run `STEP ... --file FILE`: print the lines that change, before and after, and the number of changes.

    Raises
    ------
    ConfigError
        A step is unknown.
    UserError
        The file cannot be read.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "transcripts.txt"
    >>> _ = file.write_text("GO THE(2) END\\nyes\\n")
    >>> main(["sphinx_marks", "lower", "--file", str(file)])
    line 1
      - GO THE(2) END
      + go the end
    1 of 2 transcripts change; 0 are empty afterwards
    """
    listed = "\n".join(f"  {name:<18} {step.__doc__.splitlines()[0]}" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="audiolm-lite text", description=__doc__, epilog=f"steps:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("steps", nargs="+", metavar="STEP", help="in the order of application")
    parser.add_argument("--file", type=Path, required=True, metavar="FILE", help="manifest (JSON lines) or text")
    parser.add_argument(
        "--show", type=int, default=20, metavar="N", help="changed lines to print; default: %(default)s"
    )
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
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or an invalid JSON line
        raise UserError(f"{options.file}, after line {lines}: {error}; give UTF-8 text or a manifest") from error
    print(f"{changed} of {lines} transcripts change{'' if changed <= options.show else f', {options.show} are shown'}; "
          f"{empty} are empty afterwards")  # fmt: skip


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (number of the line, transcript)."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("{"):
                row = json.loads(line)
                if row.get("task") == "asr":
                    yield number, row["target"]
            elif line.strip():
                yield number, line.rstrip("\n")


if __name__ == "__main__":
    run_command(main)
