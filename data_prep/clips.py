"""What readers of corpora share: the clip, the error about an incomplete corpus, and held-out groups."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path


class CorpusError(ValueError):
    """A corpus that is not as its publisher lays it out; the message says what was expected where."""


@dataclass(frozen=True)
class Clip:
    """One recording and what its corpus says of it; None where it says nothing.

    Attributes
    ----------
    dataset, id : str
        Corpus, and the recording's name in it.
    audio : Path
        The file; its existence is checked later, so that one lost file does not stop a whole corpus.
    split : {"train", "valid", "test"}
        Part of the corpus.
    speaker : str
        Name of the speaker, empty without one.
    group : str
        Recordings of one group never fall on both sides of a held-out split; the speaker, or the source recording.
    text : str, optional
        Transcript, normalised; empty is a fault of the corpus that preparation rejects.
    gender : {"male", "female"}, optional
        Gender of the speaker as the corpus notes it.
    age : int, optional
        Age of the speaker in years.
    sound : str, optional
        Class of the sound.
    sounds : tuple of str
        All classes that `sound` is one of.
    captions : tuple of str
        Reference captions.
    """

    dataset: str
    id: str
    audio: Path
    split: str
    group: str
    speaker: str = ""
    text: str | None = None
    gender: str | None = None
    age: int | None = None
    sound: str | None = None
    sounds: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def require(folder: Path, paths: Sequence[str], corpus: str, source: str) -> None:
    """Raise CorpusError, naming what is missing and where the corpus comes from, unless all `paths` are in `folder`."""
    missing = [path for path in paths if not (folder / path).exists()]
    if missing:
        raise CorpusError(
            f"{corpus}: expected {', '.join(missing)} in {folder.resolve()}"
            f"{'' if folder.is_dir() else ' (there is no such folder)'}. "
            f"Get the corpus from {source} and give the folder that holds {paths[0].split('/')[0]} as data folder."
        )


def read_table(file: Path) -> dict[str, str]:
    """Read `key value` lines (Kaldi's files); the value may hold spaces. Raises CorpusError at a key given twice."""
    table: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key in table:
            raise CorpusError(f"{file}, line {number}: {key} was given before; keep one of the lines")
        table[key] = value.strip()
    return table


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
