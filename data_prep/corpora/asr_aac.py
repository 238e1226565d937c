"""Speech (LibriSpeech), captions (AudioCaps, Clotho) and questions (Clotho-AQA), as far as they are available."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, read_collection
from data_prep.corpora import librispeech
from data_prep.corpora.audiocaps import read_audiocaps
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa

CORPORA = ("librispeech", "audiocaps", "clotho", "clotho_aqa")
KEYS = {
    **{f"{name}_folder": Key(f"Folder of {name}; null leaves it out.", str, None, result=False) for name in CORPORA},
    "librispeech_subsets": librispeech.KEYS["subsets"],
}


def read_asr_aac(**options: Any) -> Iterator[Clip]:
    """Read the corpora whose folder is given. Recordings that one of them holds out are in no training clip.

    Parameters
    ----------
    **options
        Values of `KEYS`.

    Yields
    ------
    Clip
        As the readers of the corpora yield them.

    Raises
    ------
    ConfigError
        No folder is given.
    CorpusError
        A corpus is incomplete or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "dev-clean/84/121123").mkdir(parents=True)
    >>> _ = (folder / "SPEAKERS.TXT").write_text("84 | F | dev-clean\\n")
    >>> _ = (folder / "dev-clean/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\\n")
    >>> options = {"librispeech_folder": folder, "librispeech_subsets": {"valid": ["dev-clean"]}}
    >>> [(clip.dataset, clip.split, clip.text) for clip in read_asr_aac(**dict.fromkeys(KEYS) | options)]
    [('LibriSpeech-dev-clean', 'valid', 'GO DO YOU HEAR')]
    """
    readers: dict[str, Callable[[str], Iterable[Clip]]] = {
        "librispeech": lambda folder: librispeech.read_librispeech(folder, options["librispeech_subsets"]),
        "audiocaps": read_audiocaps,
        "clotho": read_clotho,
        "clotho_aqa": lambda folder: read_clotho_aqa(folder, options["clotho_folder"]),
    }
    return read_collection(readers, options)
