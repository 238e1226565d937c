"""Audio files that cannot be read while a run reads them: their rows are set aside, logged and counted.

Set-aside rows are part of a run's state. All processes have the same ones, and a run that continues does not try them
again, so that it takes the same steps as one that was not interrupted.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from audiolm_lite.config.errors import UserError
from audiolm_lite.data.readable import Unreadable
from audiolm_lite.distributed import processes
from audiolm_lite.storage.atomic import write_text

logger = logging.getLogger(__name__)

LIST = "bad_audio.jsonl"


class BadAudioError(UserError, RuntimeError):
    """More audio files than `max_bad_audio` cannot be read."""


class BadAudio:
    """The rows that a run has set aside.

    Parameters
    ----------
    limit : int
        Most audio files that may be unreadable.
    folder : Path
        Receives `bad_audio.jsonl`, one line per row.

    Attributes
    ----------
    rows : dict
        (where the row was read, id) -> the row. "train" and "valid" are the datasets of the stage.

    Examples
    --------
    >>> bad = BadAudio(limit=1, folder=getfixture("tmp_path"))
    >>> bad.share("train", [Unreadable(7, "dog", "dog.wav", "dog.wav: empty")])
    >>> bad.share("train", [Unreadable(7, "dog", "dog.wav", "dog.wav: empty")])  # the same file
    >>> bad.files, list(bad.known("train")), (bad.folder / LIST).read_text()
    (1, [7], '{"read": "train", "id": "dog", "audio": "dog.wav", "reason": "dog.wav: empty"}\\n')
    >>> bad.share("valid", [Unreadable(2, "cat", "cat.wav", "cat.wav: empty")])
    Traceback (most recent call last):
    audiolm_lite.training.bad_audio.BadAudioError: 2 audio files cannot be read, more than max_bad_audio 1; the ...
    """

    def __init__(self, limit: int, folder: Path):
        self.limit, self.folder = limit, folder
        self.rows: dict[tuple[str, str], Unreadable] = {}

    @property
    def files(self) -> int:
        """Number of audio files that cannot be read."""
        return len({row.audio for row in self.rows.values()})

    def known(self, where: str) -> dict[int, Unreadable]:
        """Items of a dataset that are set aside, by their number."""
        return {row.item: row for (read, _), row in self.rows.items() if read == where and row.item >= 0}

    def share(self, where: str, found: Iterable[Unreadable]) -> None:
        """Set rows aside that any process has found; all processes must call this.

        Raises
        ------
        BadAudioError
            In all processes: the files are more than `limit`.
        """
        self.add(where, [row for rows in processes.gather(list(found)) for row in rows])

    def synchronise(self) -> None:
        """Set all rows aside that the main process has set aside; all processes must call this."""
        (state, *_) = processes.gather(self.state())
        self.load(state)

    def add(self, where: str, found: Iterable[Unreadable]) -> None:
        """Set rows aside in this process, as `share` does in all."""
        new = {(where, row.id): row for row in found if (where, row.id) not in self.rows}
        if not new:
            return
        for key, row in new.items():
            self.rows[key] = row
            logger.warning("Set aside (%s, %d of at most %d files): %s", where, self.files, self.limit, row.reason)
        if processes.is_main():
            self._write()
        if self.files > self.limit:
            raise BadAudioError(
                f"{self.files} audio files cannot be read, more than max_bad_audio {self.limit}; the newest: "
                f"{row.reason}. All are listed in {self.folder / LIST}. Repair them, or raise max_bad_audio; the same "
                "command then continues the run"
            )

    def state(self) -> list[list]:
        """Return what a checkpoint stores."""
        return [[where, *row] for (where, _), row in self.rows.items()]

    def load(self, state: Iterable[Iterable]) -> None:
        """Add the rows of a `state`."""
        for where, *row in state:
            unreadable = Unreadable(*row)
            self.rows[where, unreadable.id] = unreadable
        if self.rows and processes.is_main():
            self._write()

    def _write(self) -> None:
        entries = [{"read": where, **row._asdict()} for (where, _), row in self.rows.items()]
        lines = [json.dumps({k: v for k, v in entry.items() if k != "item"}, ensure_ascii=False) for entry in entries]
        write_text(self.folder / LIST, "".join(line + "\n" for line in lines))
