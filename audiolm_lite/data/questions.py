"""Questions for rows without an instruction, from files with one question per line (NeMo's context files)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from audiolm_lite.data.row_checks import ManifestError

DEFAULT_QUESTION = "what does the audio mean?"  # NeMo's, if neither the row nor a file has one


class Questions:
    """Draw a question for each row that has no instruction.

    With as many files as manifests, each manifest has its own file. Otherwise every row draws from the questions of all
    files, and without any file the question is DEFAULT_QUESTION. The draw depends only on seed, epoch and row id, not
    on workers or the order of reading.

    Parameters
    ----------
    files : sequence of path
        UTF-8 text with one question per line; blank lines are skipped.
    manifests : int
        Number of manifests.
    seed : int
        Seed of the draws.

    Attributes
    ----------
    pools : list of list of str
        Questions that the rows of each manifest draw from.
    epoch : int
        The current epoch.

    Raises
    ------
    ManifestError
        A file cannot be read or contains no question.

    Examples
    --------
    >>> Questions([], manifests=1).draw(0, "row-1")
    'what does the audio mean?'
    """

    def __init__(self, files: Sequence[str | Path], manifests: int, seed: int = 0):
        if isinstance(files, (str, Path)) or not isinstance(files, Sequence):
            raise ManifestError(f"question_files: {files!r} is not a list; write [path, ...]")
        pools = [_read(Path(file)) for file in files]
        combined = [question for pool in pools for question in pool] or [DEFAULT_QUESTION]
        self.pools = pools if len(pools) == manifests else [combined] * manifests
        self.seed, self.epoch = seed, 0

    def draw(self, manifest: int, row_id: str) -> str:
        """Return this epoch's question for a row of the manifest with this index."""
        pool = self.pools[manifest]
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {row_id}".encode(), digest_size=8).digest()
        return pool[int.from_bytes(digest, "big") % len(pool)]


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ManifestError(
            f"question_files: {path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"question_files: {path} is not UTF-8 ({error}); convert it with iconv") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise ManifestError(f"question_files: {path} has no question; write one per line, or remove the file")
    return questions
