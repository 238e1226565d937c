"""Convert a manifest from one toolkit's format to another's: python -m data_prep.convert FROM TO INPUT OUTPUT

Rows that cannot be read or that the target cannot hold are set aside in OUTPUT.rejected.jsonl with the reason, and
fields that the target has no place for are counted. Exit status: 0 all rows were written; 3 some were set aside;
1 more than --max_rejects were, or something else went wrong, and OUTPUT was not written.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from audiolm_lite.data.manifest import ManifestError
from data_prep.clips import CorpusError
from data_prep.formats import FormatError, Report, Row, format_names, load_format


def convert(
    source: str,
    target: str,
    path: Path,
    output: Path,
    *,
    defaults: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
    audio_root: Path | None = None,
    absolute: bool = False,
    max_rejects: float = 0.01,
    strict: bool = False,
) -> Report:
    """Convert a manifest; all of it is written, or nothing.

    Parameters
    ----------
    source, target : str
        Names of formats.
    path, output : Path
        What to read and what to write: a file, or a folder where the format is one.
    defaults : mapping
        Values of fields that the source lacks; `dataset` at least.
    options : mapping, optional
        Further arguments of the formats' `read` and `write`; each goes to whichever takes it.
    audio_root : Path, optional
        Folder that relative audio paths of the source start from, where it is not the source's own.
    absolute : bool
        Write absolute audio paths, for toolkits that take relative ones from where they are started.
    max_rejects : float
        Share of the source's rows that may be set aside.
    strict : bool
        Whether a field without a place in the target is an error.

    Returns
    -------
    Report
        What happened; rejects are also in `rejects_path(output)`, whether the conversion succeeds or not.

    Raises
    ------
    FormatError, CorpusError, ManifestError
        The source as a whole is not in its format, an option is of neither format, nothing or too much is left out.
    """
    reader, writer, report = load_format(source), load_format(target), Report()
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for_read, for_write = _taken(reader.read, given), _taken(writer.write, given)
    if unknown := given.keys() - for_read.keys() - for_write.keys():
        raise FormatError(f"--{', --'.join(sorted(unknown))}: neither {source} nor {target} has such an option")
    for_read |= _taken(reader.read, {"defaults": defaults})

    base = str((audio_root or (path if path.is_dir() else path.parent)).resolve())
    goal = str(output.parent.resolve())

    def rows() -> Iterator[Row]:
        for row in reader.read(path, report, **for_read):
            file = os.path.join(base, row["audio"])
            if not _exists(file):
                report.without_audio += 1
                report.first_without_audio = report.first_without_audio or file
            relative = not absolute and not os.path.isabs(row["audio"])
            yield {**row, "audio": os.path.relpath(file, goal) if relative else file}
        # The writer gives the output its name only after this.
        if len(report.rejected) > max_rejects * report.read:
            raise FormatError(
                f"{len(report.rejected)} of {report.read} rows were set aside, more than max_rejects {max_rejects:g}; "
                f"see {rejects_path(output)}. The first: {report.rejected[0]['reason']}"
            )
        if report.read == 0:
            raise FormatError(f"{path}: holds no row")
        if strict and report.lost:
            raise FormatError(f"{target} has no place for {counts(report.lost)}; leave out --strict to write without")

    try:
        writer.write(rows(), output, report, **for_write)
    finally:
        report.write_rejected(rejects_path(output))
    return report


def rejects_path(output: Path) -> Path:
    """Where the rows of a conversion that were set aside are listed."""
    return output.with_name(output.name + ".rejected.jsonl")


def counts(counter: Mapping[str, int]) -> str:
    """Counts in one line, the largest first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))


@lru_cache(maxsize=65536)  # rows that ask about the same clip are neighbours
def _exists(file: str) -> bool:
    shard, inside, _ = file.partition(".tar/")
    return os.path.isfile(f"{shard}.tar" if inside else file) or os.path.isfile(file)


def _taken(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in parameters}


def _field(text: str) -> tuple[str, tuple[str, ...]]:
    ours, separator, theirs = text.partition("=")
    if not (ours and separator and theirs):
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=THEIRS, such as target=sentence")
    return ours, (theirs,)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = [f"  {name:12}{load_format(name).__doc__.splitlines()[0]}" for name in format_names()]
    what = argparse.ArgumentParser(
        prog="python -m data_prep.convert",
        description=__doc__,
        epilog="formats:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what.add_argument("source", metavar="FROM", choices=format_names(), help="format of INPUT")
    what.add_argument("target", metavar="TO", choices=format_names(), help="format of OUTPUT")
    what.add_argument("path", metavar="INPUT", type=Path)
    what.add_argument("output", metavar="OUTPUT", type=Path)
    lacking = what.add_argument_group("fields that the source lacks")
    lacking.add_argument("--dataset", help="default: the name of INPUT")
    lacking.add_argument("--split", default="train", help="default: %(default)s")
    lacking.add_argument("--task", default="asr", help="default: %(default)s")
    lacking.add_argument(
        "--instruction",
        default="Transcribe the speech.",
        help='default: %(default)s; "null": none, for training with question_files',
    )
    lacking.add_argument("--language", default="en", help="default: %(default)s")
    reading = what.add_argument_group("reading")
    reading.add_argument(
        "--field",
        action="append",
        type=_field,
        metavar="OURS=THEIRS",
        help="field of the source that holds one of ours, such as target=sentence; may be repeated",
    )
    reading.add_argument("--audio_root", type=Path, help="folder that relative audio paths of INPUT start from")
    reading.add_argument(
        "--audio_folder", type=Path, help="huggingface: where audio bytes go; default: audio beside OUTPUT"
    )
    reading.add_argument(
        "--data_root", help="speechbrain: folder that {data_root} or $data_root stands for, in reading and in writing"
    )
    reading.add_argument(
        "--shards", help='nemo: tar files of a tarred manifest, such as "tars/audio__OP_0..511_CL_.tar"'
    )
    writing = what.add_argument_group("writing")
    writing.add_argument(
        "--absolute", action="store_true", help="absolute audio paths; SLAM-LLM, SALMONN and Lhotse need them"
    )
    writing.add_argument("--strict", action="store_true", help="a field without a place in the target is an error")
    writing.add_argument(
        "--max_rejects", type=float, default=0.01, help="share of the rows that may be set aside; default: %(default)s"
    )
    return what


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    audio_folder = args.audio_folder or (args.output.parent / "audio" if args.source == "huggingface" else None)
    try:
        report = convert(
            args.source,
            args.target,
            args.path,
            args.output,
            defaults={
                "dataset": args.dataset or args.path.resolve().name.partition(".")[0],
                **{name: getattr(args, name) for name in ("split", "task", "language")},
                "instruction": None if args.instruction == "null" else args.instruction,
            },
            options={
                "fields": dict(args.field) if args.field else None,
                "audio_folder": audio_folder,
                "data_root": args.data_root,
                "shards": args.shards,
            },
            audio_root=args.audio_root,
            absolute=args.absolute,
            max_rejects=args.max_rejects,
            strict=args.strict,
        )
    except (FormatError, CorpusError, ManifestError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"rows read      {report.read}")
    print(f"rows written   {report.written}")
    print(f"rows rejected  {len(report.rejected)}{f', see {rejects_path(args.output)}' if report.rejected else ''}")
    print(f"fields lost    {counts(report.lost) or 'none'}")
    if report.without_audio:
        print(
            f"audio missing  {report.without_audio} rows, the first {report.first_without_audio}; "
            "if it lies elsewhere, give --audio_root"
        )
    return 3 if report.rejected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
