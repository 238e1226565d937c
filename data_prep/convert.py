"""Convert a manifest from one toolkit's format to another's.

Rows that cannot be read, or that the target cannot store, are listed in OUTPUT.rejected.jsonl with the reason. Fields
that the target cannot store are counted. Exit status: 0 all rows were written; 3 some were rejected; 1 more than
--max_rejects were rejected, or another error, and OUTPUT was not written.
"""

import argparse
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import did_you_mean, run_command
from audiolm_lite.storage.paths import relative_path
from data_prep.formats import FormatError, Report, Row, format_names, load_format, writable_formats


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
    """Convert a manifest. The target is written completely or not at all.

    Parameters
    ----------
    source, target : str
        Names of formats; the target must be one of `writable_formats()`.
    path, output : Path
        Source and target: a file, or a folder if the format is one.
    defaults : mapping
        Values of fields that the source lacks; `dataset` is required.
    options : mapping, optional
        Further arguments of the formats' `read` and `write`; each is passed to the functions that have it.
    audio_root : Path, optional
        Folder that relative audio paths of the source start from; by default the source's own folder.
    absolute : bool
        Write absolute audio paths, for toolkits that resolve relative ones against the working directory.
    max_rejects : float
        Share of the source's rows that may be rejected.
    strict : bool
        Whether a field that the target cannot store is an error.

    Returns
    -------
    Report
        Counts and rejected rows. The latter are also in `rejects_path(output)`, even if the conversion fails.

    Raises
    ------
    FormatError, CorpusError, ManifestError
        The source is not in its format or has no rows, the target cannot be written, an option belongs to neither
        format, or too many rows were rejected.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> source, target = folder / "slam.jsonl", folder / "nemo.jsonl"
    >>> _ = source.write_text('{"key": "1", "source": "1.wav", "target": "hello"}\\n{"key": "2", "source": "2.wav"}\\n')
    >>> defaults = {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."}
    >>> report = convert("slam", "nemo", source, target, defaults=defaults, max_rejects=0.5)
    >>> report.read, report.written, len(report.rejected), report.without_audio
    (2, 1, 1, 1)
    >>> len(target.read_text().splitlines())
    1
    """
    reader, writer, report = load_format(source), load_format(target), Report()
    if target not in writable_formats():
        raise FormatError(f"{target} can be read, but not written; choose one of {', '.join(writable_formats())}")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for_read, for_write = _arguments(reader.read, given), _arguments(writer.write, given)
    if unknown := given.keys() - for_read.keys() - for_write.keys():
        raise FormatError(f"--{', --'.join(sorted(unknown))}: neither {source} nor {target} has this option; remove it")
    for_read |= _arguments(reader.read, {"defaults": defaults})

    source_folder = str((audio_root or (path if path.is_dir() else path.parent)).resolve())
    target_folder = str(output.parent.resolve())

    def moved(clip: Row) -> Row:
        file = os.path.join(source_folder, clip["audio"])
        if not _exists(file):
            missing.append(file)
        relative = not absolute and not os.path.isabs(clip["audio"])
        return {**clip, "audio": relative_path(file, target_folder) if relative else file}

    missing: list[str] = []  # of the present row

    def rows() -> Iterator[Row]:
        for row in reader.read(path, report, **for_read):
            missing.clear()
            row = moved(row)
            if "further_audio" in row:
                row["further_audio"] = [moved(clip) for clip in row["further_audio"]]
            if missing:
                report.without_audio += 1
                report.first_without_audio = report.first_without_audio or missing[0]
            yield row
        # An error here prevents the writer from renaming its temporary file to `output`.
        if len(report.rejected) > max_rejects * report.read:
            raise FormatError(
                f"{len(report.rejected)} of {report.read} rows were rejected, more than max_rejects {max_rejects:g}; "
                f"see {rejects_path(output)}. The first: {report.rejected[0]['reason']}"
            )
        if report.read == 0:
            raise FormatError(f"{path}: contains no rows; check the path and the format")
        if report.written == 0:
            raise FormatError(
                f"{path}: all {report.read} rows were rejected, so nothing is written; see {rejects_path(output)}. "
                f"The first: {report.rejected[0]['reason']}"
            )
        if strict and report.lost:
            raise FormatError(f"{target} cannot store {counts(report.lost)}; omit --strict to drop these fields")

    try:
        writer.write(rows(), output, report, **for_write)
    finally:
        report.write_rejected(rejects_path(output))
    return report


def rejects_path(output: Path) -> Path:
    """File that lists the rejected rows of a conversion.

    Examples
    --------
    >>> rejects_path(Path("data/train.jsonl")).name
    'train.jsonl.rejected.jsonl'
    """
    return output.with_name(output.name + ".rejected.jsonl")


def counts(counter: Mapping[str, int]) -> str:
    """Counts in one line, the largest first.

    Examples
    --------
    >>> counts({"age": 1, "task": 3})
    'task 3, age 1'
    """
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))


@lru_cache(maxsize=65536)  # rows about the same clip follow each other
def _exists(file: str) -> bool:
    shard, inside, _ = file.partition(".tar/")
    return os.path.isfile(f"{shard}.tar" if inside else file) or os.path.isfile(file)


def _arguments(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in parameters}


def _field(text: str) -> tuple[str, tuple[str, ...]]:
    name, separator, source_name = text.partition("=")
    if not (name and separator and source_name):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NAME, such as target=sentence")
    return name, (source_name,)


def _source_format(text: str) -> str:
    if text not in format_names():
        raise argparse.ArgumentTypeError(f"unknown format {text!r}{did_you_mean(text, format_names())}")
    return text


def _target_format(text: str) -> str:
    if _source_format(text) not in writable_formats():
        raise argparse.ArgumentTypeError(
            f"{text} can be read, but not written; choose one of {', '.join(writable_formats())}"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    read_only = set(format_names()) - set(writable_formats())
    lines = [
        f"  {name:14}{load_format(name).__doc__.splitlines()[0]}{' (read only)' if name in read_only else ''}"
        for name in format_names()
    ]
    parser = argparse.ArgumentParser(
        prog="audiolm-lite manifest",
        description=__doc__,
        epilog="formats:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM", type=_source_format, help="format of INPUT, see below")
    parser.add_argument(
        "target", metavar="TO", type=_target_format, help=f"format of OUTPUT: {', '.join(writable_formats())}"
    )
    parser.add_argument("path", metavar="INPUT", type=Path, help="file or folder to read")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="file or folder to write")
    missing = parser.add_argument_group("values of fields that INPUT lacks")
    missing.add_argument("--dataset", help="default: the name of INPUT")
    missing.add_argument("--split", default="train", help="default: %(default)s")
    missing.add_argument("--task", default="asr", help="default: %(default)s")
    missing.add_argument(
        "--instruction",
        default="Transcribe the speech.",
        help='default: %(default)s; "null": none, for training with question_files',
    )
    missing.add_argument("--language", default="en", help="default: %(default)s")
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--field",
        action="append",
        type=_field,
        metavar="FIELD=NAME",
        help="name of a manifest field in INPUT, such as target=sentence; may be repeated",
    )
    reading.add_argument("--audio_root", type=Path, help="folder that relative audio paths of INPUT start from")
    reading.add_argument(
        "--audio_folder", type=Path, help="huggingface: folder for audio bytes; default: audio, next to OUTPUT"
    )
    reading.add_argument(
        "--data_root", help="speechbrain: value of {data_root} or $data_root, for reading and for writing"
    )
    reading.add_argument(
        "--shards", help='nemo: tar files of a tarred manifest, such as "tars/audio__OP_0..511_CL_.tar"'
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument("--absolute", action="store_true", help="write absolute audio paths, which Lhotse needs")
    writing.add_argument("--strict", action="store_true", help="a field that TO cannot store is an error")
    writing.add_argument(
        "--max_rejects", type=float, default=0.01, help="share of the rows that may be rejected; default: %(default)s"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `FROM TO INPUT OUTPUT ...`; returns 3 if rows were rejected, otherwise 0. Errors are those of `convert`."""
    args = _parser().parse_args(argv)
    audio_folder = args.audio_folder or (args.output.parent / "audio" if args.source == "huggingface" else None)
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
    print(f"rows read      {report.read}")
    print(f"rows written   {report.written}")
    print(f"rows rejected  {len(report.rejected)}{f', see {rejects_path(args.output)}' if report.rejected else ''}")
    print(f"fields lost    {counts(report.lost) or 'none'}")
    if report.without_audio:
        print(
            f"audio missing  {report.without_audio} rows, the first {report.first_without_audio}; "
            "if the files are in another folder, give --audio_root"
        )
    return 3 if report.rejected else 0


if __name__ == "__main__":
    run_command(main)
