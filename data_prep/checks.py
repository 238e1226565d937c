"""Checks of audio files, run in threads; results are stored for the next run."""

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
# Clips checked ahead of the current one: enough to hide a slow disk, few enough to bound memory.
_AHEAD = 256
_SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Check:
    """Properties of a clip's audio.

    Attributes
    ----------
    seconds : float
        Its duration.
    silence : float, optional
        Share of silent frames, if the samples were decoded.
    digest : str, optional
        Hash of the file's bytes, if duplicates are searched.
    """

    seconds: float
    silence: float | None = None
    digest: str | None = None


class CheckedAudio:
    """Check audio files, each once while it does not change: results are stored in an SQLite file.

    A file counts as unchanged if its size and modification time are the same, or those of the tar file that contains
    it. Errors are not stored, so that a repaired file passes.

    Parameters
    ----------
    file : Path
        The SQLite file.
    decode : bool
        Decode all samples instead of reading only the header.
    digest : bool
        Hash the file's bytes.
    """

    def __init__(self, file: Path, decode: bool, digest: bool):
        self.decode, self.digest = decode, digest
        self._lock, self._saved = Lock(), time.monotonic()
        self._database = sqlite3.connect(file, check_same_thread=False)
        self._database.execute("CREATE TABLE IF NOT EXISTS checks (file TEXT PRIMARY KEY, found TEXT) WITHOUT ROWID")
        # For this run only. SQLite moves it to disk when it is large, so millions of names do not fill the memory.
        self._database.execute("CREATE TEMP TABLE first (name BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID")

    def __enter__(self) -> "CheckedAudio":
        return self

    def __exit__(self, *error: object) -> None:
        self._database.commit()
        self._database.close()

    def check(self, path: Path, start: float, duration: float | None, channel: int | None = None) -> Check:
        """Check a file, or `duration` seconds of it from `start`, of one channel or the mean of all.

        Raises AudioError if it cannot be used.
        """
        try:
            status = (tar_of(path) or path).stat()
        except (OSError, ValueError):  # `_inspect` reports it
            key = None
        else:
            state = [str(path), start, duration, status.st_size, status.st_mtime_ns, self.decode, self.digest, channel]
            key = json.dumps(state)
            with self._lock:
                known = self._database.execute("SELECT found FROM checks WHERE file = ?", (key,)).fetchone()
            if known:
                return Check(**json.loads(known[0]))
        result = self._inspect(path, start, duration, channel)
        if key is not None:
            with self._lock:
                self._database.execute("INSERT OR REPLACE INTO checks VALUES (?, ?)", (key, json.dumps(asdict(result))))
                if time.monotonic() - self._saved > _SAVE_SECONDS:  # the most that a killed process loses
                    self._database.commit()
                    self._saved = time.monotonic()
        return result

    def _inspect(self, path: Path, start: float, duration: float | None, channel: int | None) -> Check:
        silence = None
        if self.decode:  # in blocks: a recording of hours does not fit in memory
            samples, levels = 0, []
            for block, rate in audio_blocks(path, start, duration, channel=channel):
                samples += len(block)
                levels.append(frame_levels(block, rate))
            seconds, silence = samples / rate, silence_share(np.concatenate(levels))
        else:
            seconds = audio_duration(path, start, duration)
        # A duration from the corpus is kept as it is, because it is part of the segment's key.
        return Check(seconds if duration is None else duration, silence, _digest(path) if self.digest else None)

    def register(self, name: str, id: str) -> str | None:
        """Record that clip `id` has `name`; returns the id of an earlier clip with that name, or None."""
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._database.execute("SELECT id FROM first WHERE name = ?", (key,)).fetchone()
            if known is None:
                self._database.execute("INSERT INTO first VALUES (?, ?)", (key, id))
        return known[0] if known else None


def in_threads(function: Callable[[T], Any], items: Iterable[T]) -> Iterator[tuple[T, Future]]:
    """Yield (item, future of function(item)) in order; work is at most a few hundred items ahead of the caller.

    Examples
    --------
    >>> [(item, future.result()) for item, future in in_threads(len, ["a", "bcd", "ef"])]
    [('a', 1), ('bcd', 3), ('ef', 2)]
    """
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
