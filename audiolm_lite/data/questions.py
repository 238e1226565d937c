"""Questions for rows that have none, from files of one question a line (NeMo's question or context files)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from audiolm_lite.data.manifest import ManifestError

DEFAULT_QUESTION = "what does the audio mean?"  # NeMo's, where neither the row nor a file has one


class Questions:
    """Choose a question for each row that has no instruction of its own.

    As many files as manifests: each manifest has its own. Otherwise every row draws from the questions of all files;
    without a file the question is DEFAULT_QUESTION. Which one is drawn depends on the seed, the epoch and the row's id
    alone, so neither workers nor the order of reading change it.

    Parameters
    ----------
    files : sequence of path
        UTF-8 text, one question a line; blank lines are skipped.
    manifests : int
        Number of manifests.
    seed : int

    Attributes
    ----------
    pools : list of list of str
        What the rows of each manifest draw from.
    epoch : int
        The current epoch.

    Raises
    ------
    ManifestError
        A file cannot be read or holds no question.
    """

    def __init__(self, files: Sequence[str | Path], manifests: int, seed: int = 0):
        read = [_read(Path(file)) for file in files]
        together = [question for questions in read for question in questions] or [DEFAULT_QUESTION]
        self.pools = read if len(read) == manifests else [together] * manifests
        self.seed, self.epoch = seed, 0

    def draw(self, manifest: int, row_id: str) -> str:
        """Question in this epoch of a row of the manifest at this place in the list."""
        pool = self.pools[manifest]
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {row_id}".encode(), digest_size=8).digest()
        return pool[int.from_bytes(digest, "big") % len(pool)]


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ManifestError(f"question_files: {path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"question_files: {path} is not UTF-8 ({error}); convert it with iconv") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise ManifestError(f"question_files: {path} holds no question; write one a line, or leave the file out")
    return questions
