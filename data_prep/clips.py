"""What readers of corpora share: the clip, the error about an incomplete corpus, tables, and held-out groups."""

import csv
import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from audiolm_lite.config.errors import UserError

log = logging.getLogger(__name__)


class CorpusError(UserError, ValueError):
    """A corpus that is not as its publisher lays it out; the message says what was expected where."""


class Label(NamedTuple):
    """One class of a clip, for a closed question: its task (emotion, sound_class ...) and the classes to choose from.

    `choices` is empty where there are too many to write into each row of a manifest (some hundred sounds).
    """

    task: str
    label: str
    choices: tuple[str, ...] = ()


class Event(NamedTuple):
    """A sound heard in a clip and, where the corpus notes it, from when to when (seconds from the clip's start)."""

    sound: str
    start: float | None = None
    end: float | None = None


class Question(NamedTuple):
    """A question that the corpus itself asks, its answers by different people, and the choices of a closed one."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """One recording, or a segment of one, and what its corpus says of it; None or empty where it says nothing.

    Attributes
    ----------
    dataset, id : str
        Corpus, and the recording's name in it.
    audio : Path
        The file; its existence is checked later, so that one lost file does not stop a whole corpus.
    split : {"train", "valid", "test"}
        Part of the corpus.
    group : str
        Recordings of one group never fall on both sides of a held-out split; the speaker, or the source recording.
    start, duration : float
        Segment of the file in seconds; no duration is to the end.
    language : str
        ISO 639-1 code of the speech.
    speaker : str
        Name of the speaker, empty without one.
    gender : {"male", "female"}, optional
        Gender of the speaker as the corpus notes it.
    age : int, optional
        Age of the speaker in years.
    text : str, optional
        Transcript; empty is a fault of the corpus that preparation rejects.
    labels : tuple of Label
        Classes of the whole clip, one a task.
    events : tuple of Event
        All sounds the corpus notes in the clip.
    captions : tuple of str
        Reference captions.
    questions : tuple of Question
        Questions of the corpus itself.
    """

    dataset: str
    id: str
    audio: Path
    split: str
    group: str
    start: float = 0.0
    duration: float | None = None
    language: str = "en"
    speaker: str = ""
    gender: str | None = None
    age: int | None = None
    text: str | None = None
    labels: tuple[Label, ...] = ()
    events: tuple[Event, ...] = ()
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    def label(self, task: str) -> str:
        """Class of a task; raises KeyError where the clip has none."""
        return {label.task: label.label for label in self.labels}[task]


def require(folder: Path, paths: Sequence[str], corpus: str, source: str) -> None:
    """Raise CorpusError, naming what is missing and where the corpus comes from, unless all `paths` are in `folder`."""
    missing = [path for path in paths if not (folder / path).exists()]
    if missing:
        raise CorpusError(
            f"{corpus}: expected {', '.join(missing)} in {folder.resolve()}"
            f"{'' if folder.is_dir() else ' (there is no such folder)'}. "
            f"Get the corpus from {source} and give the folder that holds {paths[0].split('/')[0]} as data folder."
        )


def read_lines(file: Path, *encodings: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank.

    Parameters
    ----------
    file : Path
        A list of the corpus.
    *encodings : str
        In which the list is about, tried in turn; UTF-8 where none is given.

    Raises
    ------
    CorpusError
        The file is in none of them.
    """
    content = file.read_bytes()
    for encoding in encodings or ("utf-8-sig",):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError as error:
            fault = error
    else:
        raise CorpusError(f"{file}: not readable as text ({fault}); fetch it again, or convert it to UTF-8")
    # Not splitlines, which also splits at characters that a transcript may hold, such as U+2028.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line


def read_table(file: Path) -> dict[str, str]:
    """Read `key value` lines (Kaldi's files); the value may hold spaces. Raises CorpusError at a key given twice."""
    table: dict[str, str] = {}
    for number, line in read_lines(file):
        key, *value = line.split(maxsplit=1)
        if key in table:
            raise CorpusError(f"{file}, line {number}: {key} was given before; keep one of the lines")
        table[key] = "".join(value).strip()
    return table


def read_rows(
    file: Path,
    columns: Sequence[str],
    source: str,
    *,
    delimiter: str = ",",
    header: bool = True,
    skip: int = 0,
    encoding: str = "utf-8-sig",
) -> Iterator[dict[str, str]]:
    """Yield the rows of a table, one at a time, as {column: text}.

    Parameters
    ----------
    file : Path
        The table.
    columns : sequence of str
        Columns that must be there; without a header, the names of all columns in order.
    source : str
        Where the corpus comes from, for the message.
    delimiter : str
        Between columns; blanks around values are dropped. Quotes have no meaning in tables with tabs.
    header : bool
        Whether the first line names the columns.
    skip : int
        Lines of comment before the table.
    encoding : str
        Of the file; by default UTF-8 with or without a byte order mark.

    Raises
    ------
    CorpusError
        A column is missing, or a line has too few of them; names file and line.
    """
    with file.open(encoding=encoding, newline="") as lines:
        for _ in range(skip):
            next(lines, None)
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", quoting=quoting)
        try:
            names = [name.strip() for name in next(reader, [])] if header else list(columns)
            if lacking := set(columns) - set(names):
                raise CorpusError(f"{file}: no column {', '.join(sorted(lacking))}; fetch it again from {source}")
            needed = 1 + max(names.index(column) for column in columns)
            for row in reader:
                if row and len(row) < needed:
                    where = f"{file}, line {reader.line_num + skip}"
                    raise CorpusError(f"{where}: {len(row)} of {needed} columns; fetch it again from {source}")
                if row:
                    yield {name: value.strip() for name, value in zip(names, row, strict=False)}
        except (UnicodeDecodeError, csv.Error) as error:
            where = f"{file}, after line {reader.line_num + skip}"
            raise CorpusError(f"{where}: not readable ({error}); fetch it again from {source}") from error


def number_in(file: Path, text: str) -> float:
    """Read a number out of a table; raises CorpusError, naming the file, where it is none."""
    try:
        return float(text)
    except ValueError as error:
        raise CorpusError(f"{file}: {text!r} stands where a number should; fetch it again") from error


def drawn(group: str, share: float, seed: int) -> bool:
    """Whether a group is among about `share` of all: `hold_out` for corpora too large to hold at once.

    The choice rests on the group's name and the seed alone, so it is the same in every file and order.
    """
    digest = hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def keep_apart(corpora: Sequence[Callable[[], Iterable[Clip]]]) -> Iterator[Clip]:
    """Yield the clips of several corpora, without those whose group one of them holds out for later.

    Corpora cut their clips from the same recordings (YouTube, Freesound, LibriVox) and each splits them in its own way.

    Parameters
    ----------
    corpora : sequence of callable
        Each gives the clips of one corpus anew; all are read twice, so that only held-out groups are kept in memory.
    """
    later = {"train": 0, "valid": 1, "test": 2}
    held_out: dict[str, int] = {}
    for read in corpora:
        for clip in read():
            if clip.split != "train":
                held_out[clip.group] = max(later[clip.split], held_out.get(clip.group, 0))
    left_out: dict[tuple[str, str], int] = defaultdict(int)
    for read in corpora:
        for clip in read():
            if later[clip.split] < held_out.get(clip.group, 0):
                left_out[clip.dataset, clip.split] += 1
            else:
                yield clip
    for (dataset, split), count in left_out.items():
        log.warning(
            "%s: %d clips of its %s part are left out: their recordings are held out elsewhere", dataset, count, split
        )


def hold_out(clips: Iterable[Clip], share: float, split: str, seed: int, stratum: Callable[[Clip], str]) -> list[Clip]:
    """Move about `share` of the training groups of each stratum to `split`, whole groups at a time.

    Parameters
    ----------
    clips : iterable of Clip
        Clips of other splits than "train" stay as they are.
    share : float
        Share of the groups; at least one group of each stratum that has two moves, and one always stays.
    split : str
        Name of the held-out split.
    seed : int
        With the groups' names, all that the choice depends on.
    stratum : callable
        Clip -> name of the class whose balance is kept, such as the gender.

    Returns
    -------
    list of Clip
        In the order given.
    """
    clips = list(clips)
    groups: dict[str, set[str]] = defaultdict(set)
    taken: set[str] = set()
    for clip in clips:
        # A group with several strata (a recording with two sounds) counts in the first, or it would be chosen twice.
        if clip.split == "train" and clip.group not in taken:
            taken.add(clip.group)
            groups[stratum(clip)].add(clip.group)
    held = set()
    for name, members in sorted(groups.items()):
        ordered = sorted(members)
        random.Random(f"{seed} {split} {name}").shuffle(ordered)
        held.update(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])
    return [replace(clip, split=split) if clip.split == "train" and clip.group in held else clip for clip in clips]
