"""Common parts of corpus readers: the clip, the error about an incomplete corpus, tables, and held-out groups."""

import csv
import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audiolm_lite.config.errors import ConfigError, UserError

log = logging.getLogger(__name__)


class CorpusError(UserError, ValueError):
    """A corpus that is not in its publisher's layout; the message says what was expected and where."""


class Label(NamedTuple):
    """One class of a clip, for a closed question: its task (emotion, sound_class ...) and the classes to choose from.

    `choices` is empty if there are too many to write into every row of a manifest (hundreds of sounds).
    """

    task: str
    label: str
    choices: tuple[str, ...] = ()


class Event(NamedTuple):
    """A sound in a clip and, if the corpus records them, its start and end in seconds from the clip's start."""

    sound: str
    start: float | None = None
    end: float | None = None


class Question(NamedTuple):
    """A question about a clip, the answers of different people, the choices of a closed question, and its task."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    task: str = "qa"


@dataclass(frozen=True)
class Clip:
    """One recording, or a segment of one, with its annotations; None or empty if the corpus has none.

    Attributes
    ----------
    dataset, id : str
        The corpus, and the recording's name in it.
    audio : Path
        The file. Its existence is checked later, so that one missing file does not stop the preparation.
    split : {"train", "valid", "test"}
        The split.
    group : str
        The speaker or the source recording. All recordings of a group are in the same split.
    start, duration, channel : float, int
        Segment of the file in seconds, by default to its end; its channel from 0, by default the mean of all.
    language : str
        ISO 639-1 code of the speech.
    speaker : str
        Name of the speaker, or empty.
    gender : {"male", "female"}, optional
        Gender of the speaker as recorded in the corpus.
    age : int, optional
        Age of the speaker in years.
    text : str, optional
        Transcript. Preparation rejects a clip whose transcript is empty.
    labels : tuple of Label
        Classes of the clip, at most one per task.
    events : tuple of Event
        All sounds that the corpus records in the clip.
    captions : tuple of str
        Reference captions.
    questions : tuple of Question
        Questions with wordings of their own.
    render : callable, optional
        Returns the samples [S] (float32, 16 kHz) of a clip made from others, which preparation writes to `audio`.
    """

    dataset: str
    id: str
    audio: Path
    split: str
    group: str
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None
    language: str = "en"
    speaker: str = ""
    gender: str | None = None
    age: int | None = None
    text: str | None = None
    labels: tuple[Label, ...] = ()
    events: tuple[Event, ...] = ()
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    render: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    def label(self, task: str) -> str:
        """Class of a task; raises KeyError if the clip has none."""
        return {label.task: label.label for label in self.labels}[task]


def require(folder: Path, paths: Sequence[str], corpus: str, source: str) -> None:
    """Raise CorpusError unless all `paths` exist in `folder`; the message names the missing ones and the source.

    Examples
    --------
    >>> try:
    ...     require(getfixture("tmp_path"), ["wav", "etc"], "AN4", "http://www.speech.cs.cmu.edu/databases/an4/")
    ... except CorpusError as error:
    ...     print(str(error).partition(" in ")[0])
    AN4: expected wav, etc
    """
    missing = [path for path in paths if not (folder / path).exists()]
    if missing:
        raise CorpusError(
            f"{corpus}: expected {', '.join(missing)} in {folder.resolve()}"
            f"{'' if folder.is_dir() else ' (there is no such folder)'}. "
            f"Get the corpus from {source} and give the folder that contains {paths[0].split('/')[0]} as data folder."
        )


def read_lines(file: Path, *encodings: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank.

    Parameters
    ----------
    file : Path
        A list of the corpus.
    *encodings : str
        Encodings of the copies of this list, tried in this order; by default UTF-8.

    Yields
    ------
    number : int
        Number of the line, from 1.
    line : str
        Its text without the line end.

    Raises
    ------
    CorpusError
        The file is in none of the encodings.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "transcripts.txt"
    >>> _ = file.write_bytes("good morning\\n\\n안녕\\n".encode("cp949"))
    >>> list(read_lines(file, "utf-8-sig", "cp949"))
    [(1, 'good morning'), (3, '안녕')]
    """
    content = file.read_bytes()
    for encoding in encodings or ("utf-8-sig",):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError as error:
            fault = error
    else:
        raise CorpusError(f"{file}: not readable as text ({fault}); download it again, or convert it to UTF-8")
    # Not splitlines, which also splits at characters that a transcript may contain, such as U+2028.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line


def read_table(file: Path) -> dict[str, str]:
    """Read `key value` lines (Kaldi's files); values may contain spaces. Raises CorpusError if a key is repeated.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "text"
    >>> _ = file.write_text("utt1 good morning\\nutt2 hello\\n")
    >>> read_table(file)
    {'utt1': 'good morning', 'utt2': 'hello'}
    """
    table: dict[str, str] = {}
    for number, line in read_lines(file):
        key, *value = line.split(maxsplit=1)
        if key in table:
            raise CorpusError(f"{file}, line {number}: {key} occurs twice; keep one of the lines")
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
        Required columns; without a header, the names of all columns in order.
    source : str
        Where to get the corpus, for the message.
    delimiter : str
        Separator of the columns; spaces around values are dropped. Quotes have no meaning in tables with tabs.
    header : bool
        Whether the first line names the columns.
    skip : int
        Number of comment lines before the table.
    encoding : str
        Encoding of the file; by default UTF-8 with or without a byte order mark.

    Raises
    ------
    CorpusError
        A column is missing, or a line has too few; the message names file and line.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "sounds.csv"
    >>> _ = file.write_text('# a comment\\nname, sound\\n1.wav, "rain, wind"\\n')
    >>> list(read_rows(file, ["name", "sound"], "https://example.org", skip=1))
    [{'name': '1.wav', 'sound': 'rain, wind'}]
    """
    with file.open(encoding=encoding, newline="") as lines:
        for _ in range(skip):
            next(lines, None)
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", quoting=quoting)
        try:
            names = [name.strip() for name in next(reader, [])] if header else list(columns)
            if missing := set(columns) - set(names):
                raise CorpusError(f"{file}: no column {', '.join(sorted(missing))}; download it again from {source}")
            needed = 1 + max(names.index(column) for column in columns)
            for row in reader:
                if row and len(row) < needed:
                    where = f"{file}, line {reader.line_num + skip}"
                    raise CorpusError(f"{where}: {len(row)} of {needed} columns; download it again from {source}")
                if row:
                    yield {name: value.strip() for name, value in zip(names, row, strict=False)}
        except (UnicodeDecodeError, csv.Error) as error:
            where = f"{file}, after line {reader.line_num + skip}"
            raise CorpusError(f"{where}: not readable ({error}); download it again from {source}") from error


def parse_number(file: Path, text: str) -> float:
    """Convert the text of a table's cell to a number; raises CorpusError, which names the file.

    Examples
    --------
    >>> parse_number(Path("times.csv"), " 2.50")
    2.5
    >>> parse_number(Path("times.csv"), "two")
    Traceback (most recent call last):
        ...
    data_prep.clips.CorpusError: times.csv: 'two' is not a number; download it again
    """
    try:
        return float(text)
    except ValueError as error:
        raise CorpusError(f"{file}: {text!r} is not a number; download it again") from error


def is_held_out(group: str, share: float, seed: int) -> bool:
    """Whether a group is one of about `share` of all: `hold_out` for corpora too large to fit in memory.

    The choice depends on the group's name and the seed only, so it is the same in every file and in any order.

    Examples
    --------
    >>> [name for name in "abcdefghij" if is_held_out(name, share=0.3, seed=1)]
    ['b', 'h']
    """
    digest = hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def keep_apart(corpora: Sequence[Callable[[], Iterable[Clip]]]) -> Iterator[Clip]:
    """Yield the clips of several corpora, without training clips of recordings that one of the corpora holds out.

    Corpora contain clips of the same recordings (YouTube, Freesound, LibriVox), and each has a split of its own. A
    group that is in several splits is kept in the last one only, in the order train, valid, test.

    Parameters
    ----------
    corpora : sequence of callable
        Each returns the clips of one corpus. All are called twice, so that only held-out groups are kept in memory.

    Examples
    --------
    >>> clotho = [Clip("Clotho", name, Path(name), "train", f"freesound {name}") for name in "ab"]
    >>> aqa = [Clip("Clotho-AQA", "a", Path("a"), "test", "freesound a")]
    >>> [(clip.dataset, clip.id, clip.split) for clip in keep_apart([lambda: clotho, lambda: aqa])]
    [('Clotho', 'b', 'train'), ('Clotho-AQA', 'a', 'test')]
    """
    order = {"train": 0, "valid": 1, "test": 2}
    held_out: dict[str, int] = {}
    for read in corpora:
        for clip in read():
            if clip.split != "train":
                held_out[clip.group] = max(order[clip.split], held_out.get(clip.group, 0))
    left_out: dict[tuple[str, str], int] = defaultdict(int)
    for read in corpora:
        for clip in read():
            if order[clip.split] < held_out.get(clip.group, 0):
                left_out[clip.dataset, clip.split] += 1
            else:
                yield clip
    for (dataset, split), count in left_out.items():
        log.warning(
            "%s: %d clips of split %s are left out: their recordings are held out in another split",
            dataset,
            count,
            split,
        )


def read_collection(
    readers: Mapping[str, Callable[[str], Iterable[Clip]]], options: Mapping[str, Any]
) -> Iterator[Clip]:
    """Return the clips of those corpora whose folder is given, with common recordings in one split only.

    Parameters
    ----------
    readers : mapping
        Corpus -> function that reads the clips in a folder.
    options : mapping
        `<corpus>_folder` for every corpus; None leaves the corpus out. ConfigError if all are None.

    Examples
    --------
    >>> def read(folder):
    ...     yield Clip("AN4", "1", Path(folder, "1.wav"), "train", "fash")
    >>> readers, folders = {"an4": read, "esc50": read}, {"an4_folder": "/data/an4", "esc50_folder": None}
    >>> [clip.audio.as_posix() for clip in read_collection(readers, folders)]
    ['/data/an4/1.wav']
    """
    folders = {name: options[f"{name}_folder"] for name in readers}
    corpora = [partial(readers[name], folder) for name, folder in folders.items() if folder is not None]
    if not corpora:
        raise ConfigError(f"no corpus: give at least one of {', '.join(f'--{name}_folder' for name in readers)}")
    return keep_apart(corpora)


def hold_out(clips: Iterable[Clip], share: float, split: str, seed: int, stratum: Callable[[Clip], str]) -> list[Clip]:
    """Move about `share` of the training groups of each stratum to `split`, with all clips of a group.

    Parameters
    ----------
    clips : iterable of Clip
        Clips of other splits than "train" do not change.
    share : float
        Share of the groups. Of a stratum with two groups or more, at least one moves and at least one stays.
    split : str
        Name of the held-out split.
    seed : int
        The choice depends on the seed and the groups' names only.
    stratum : callable
        Clip -> name of the class whose balance is kept, such as the gender.

    Returns
    -------
    list of Clip
        In the given order.

    Examples
    --------
    >>> genders = {"anna": "female", "berta": "female", "carl": "male", "dan": "male"}
    >>> clips = [Clip("d", name, Path(name), "train", name, gender=gender) for name, gender in genders.items()]
    >>> [(clip.group, clip.split) for clip in hold_out(clips, 0.5, "valid", seed=0, stratum=lambda clip: clip.gender)]
    [('anna', 'train'), ('berta', 'valid'), ('carl', 'train'), ('dan', 'valid')]
    """
    clips = list(clips)
    groups: dict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for clip in clips:
        # A group with several strata (a recording with two sounds) counts in the first one only.
        if clip.split == "train" and clip.group not in seen:
            seen.add(clip.group)
            groups[stratum(clip)].add(clip.group)
    held = set()
    for name, members in sorted(groups.items()):
        ordered = sorted(members)
        random.Random(f"{seed} {split} {name}").shuffle(ordered)
        held.update(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])
    return [replace(clip, split=split) if clip.split == "train" and clip.group in held else clip for clip in clips]
