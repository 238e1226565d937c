"""Common Voice: train.tsv, validated.tsv ... next to the folder clips, with client_id, path, sentence, locale."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.delimited import Table
from data_prep.formats import FormatError, Report, Row, checked_rows, rename_to_manifest

NAMES = {"audio": ("path",), "target": ("sentence",), "speaker": ("client_id",), "language": ("locale",)}
_VOTES = ("up_votes", "down_votes")
# Names of the published lists that are splits; rows of others, such as validated.tsv, are in the given split.
_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows; ids are the names of the clips, and votes are numbers. Empty fields (gender, age) are left out.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "dev.tsv"
    >>> cells = "client_id", "path", "sentence", "up_votes", "age", "locale"
    >>> values = "c1", "cv_ko_1.mp3", '"Yes," he said.', "2", "", "ko"
    >>> _ = file.write_text("\\t".join(cells) + "\\n" + "\\t".join(values) + "\\n")
    >>> (row,) = read(file, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> row["id"], row["audio"], row["split"], row["target"], row["up_votes"], row["language"], "age" in row
    ('cv_ko_1', 'clips/cv_ko_1.mp3', 'valid', '"Yes," he said.', 2, 'ko', False)
    """
    names = {**NAMES, **(fields or {})}
    table = Table(path, delimiter="\t")
    needed = [names[name][0] for name in ("audio", "target", "speaker")]
    if missing := [column for column in needed if column not in table.columns]:
        raise FormatError(
            f"{path}: no column {', '.join(missing)} among {', '.join(table.columns)}; give a .tsv file of Common Voice"
        )
    split = {"split": _SPLITS[path.stem]} if path.stem in _SPLITS else {}

    def to_row(entry: Any) -> Row:
        for column in needed:
            if not entry[column]:
                raise FormatError(f'field "{column}": empty; remove the row')
        row = split | rename_to_manifest({name: cell for name, cell in entry.items() if cell}, names, report)
        clip = PurePosixPath(row["audio"])
        row |= {"id": clip.stem, "audio": str(clip if len(clip.parts) > 1 else "clips" / clip)}
        for column in _VOTES:
            if column in row:
                if not row[column].isdecimal():
                    raise FormatError(f'field "{column}": {row[column]!r:.80} is not a number of votes; correct it')
                row[column] = int(row[column])
        return row

    return checked_rows(path, table.rows(), to_row, report, defaults)
