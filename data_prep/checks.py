"""What preparation must know of each audio file, found out in threads and remembered for the next run."""

import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from audiolm_lite.audio.reading import audio_blocks, audio_duration
from audiolm_lite.audio.tar_members import open_member, tar_of
from data_prep.filters import frame_levels, silence_share

T = TypeVar("T")
# Clips looked at ahead of the one in hand: enough to hide a slow disk, few enough to keep memory flat.
_AHEAD = 256
_SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Check:
    """Facts about a clip's audio.

    Attributes
    ----------
    seconds : float
        Its duration.
    silence : float, optional
        Share of silent frames, where the samples were decoded.
    digest : str, optional
        Hash of the file's bytes, where duplicates are looked for.
    """

    seconds: float
    silence: float | None = None
    digest: str | None = None


class CheckedAudio:
    """Check audio files, once for each state of a file: what was found is kept in an SQLite file.

    A file counts as the same while its size and time of change are, or those of the tar file that it lies in. Faults
    are not kept, so a repaired file passes.

    Parameters
    ----------
    file : Path
        The SQLite file.
    decode : bool
        Decode all samples, in place of reading the header alone.
    digest : bool
        Hash the file's bytes.
    """

    def __init__(self, file: Path, decode: bool, digest: bool):
        self.decode, self.digest = decode, digest
        self._lock, self._saved = Lock(), time.monotonic()
        self._database = sqlite3.connect(file, check_same_thread=False)
        self._database.execute("CREATE TABLE IF NOT EXISTS checks (file TEXT PRIMARY KEY, found TEXT) WITHOUT ROWID")
        # Of this run only, and on disk as soon as it is large: millions of names would not be little memory.
        self._database.execute("CREATE TEMP TABLE first (name BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID")

    def __enter__(self) -> "CheckedAudio":
        return self

    def __exit__(self, *error: object) -> None:
        self._database.commit()
        self._database.close()

    def check(self, path: Path, start: float, duration: float | None) -> Check:
        """Facts of a file, or of `duration` seconds of it from `start`; raises AudioError where it cannot be used."""
        try:
            status = (tar_of(path) or path).stat()
        except (OSError, ValueError):  # read_audio says what is wrong
            key = None
        else:
            state = [str(path), start, duration, status.st_size, status.st_mtime_ns, self.decode, self.digest]
            key = json.dumps(state)
            with self._lock:
                known = self._database.execute("SELECT found FROM checks WHERE file = ?", (key,)).fetchone()
            if known:
                return Check(**json.loads(known[0]))
        found = self._look(path, start, duration)
        if key is not None:
            with self._lock:
                self._database.execute("INSERT OR REPLACE INTO checks VALUES (?, ?)", (key, json.dumps(asdict(found))))
                if time.monotonic() - self._saved > _SAVE_SECONDS:  # a kill loses no more than this
                    self._database.commit()
                    self._saved = time.monotonic()
        return found

    def _look(self, path: Path, start: float, duration: float | None) -> Check:
        silence = None
        if self.decode:  # block by block: a recording of hours is never held whole
            samples, levels = 0, []
            for block, rate in audio_blocks(path, start, duration):
                samples += len(block)
                levels.append(frame_levels(block, rate))
            seconds, silence = samples / rate, silence_share(np.concatenate(levels))
        else:
            seconds = audio_duration(path, start, duration)
        # A duration that the corpus gives stays as it is: it names the segment.
        return Check(seconds if duration is None else duration, silence, _digest(path) if self.digest else None)

    def first_with(self, name: str, id: str) -> str | None:
        """Remember that clip `id` has `name`; returns the id of an earlier clip that has it, or None."""
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._database.execute("SELECT id FROM first WHERE name = ?", (key,)).fetchone()
            if known is None:
                self._database.execute("INSERT INTO first VALUES (?, ?)", (key, id))
        return known[0] if known else None


def in_threads(function: Callable[[T], Any], items: Iterable[T]) -> Iterator[tuple[T, Future]]:
    """Yield (item, future of function(item)) in order, a few hundred items ahead of the caller and no more."""
    with ThreadPoolExecutor() as pool:
        waiting: deque[tuple[T, Future]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_member(path) or path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
