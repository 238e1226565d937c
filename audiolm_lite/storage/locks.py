"""Locks between processes, on Linux, macOS and Windows."""

import errno
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def file_lock(path: str | Path, *, timeout: float = -1, once_per_process: bool = False) -> BaseFileLock:
    """Return a lock that a process holds between `acquire` and `release`, or as a context.

    Parameters
    ----------
    path : path
        An empty file for the lock, which may stay on the disk.
    timeout : float
        Seconds that `acquire` waits before it raises `filelock.Timeout`; negative: any time.
    once_per_process : bool
        All locks of this path in a process are one lock, which it can acquire several times.

    Examples
    --------
    >>> with file_lock(getfixture("tmp_path") / "table.lock") as lock:
    ...     lock.is_locked
    True
    """
    # Without locks of the system, the existence of the file is the lock, so it needs a name of its own: the system's
    # locks leave their files behind.
    name = f"{path}.held" if issubclass(FileLock, SoftFileLock) else str(path)
    return FileLock(name, timeout=timeout, thread_local=not once_per_process, is_singleton=once_per_process)


class ProcessLock:
    """A lock that belongs to this process, until it ends or no `ProcessLock` of this path is left in it.

    Parameters
    ----------
    path : path
        An empty file for the lock.

    Raises
    ------
    BlockingIOError
        Another process has the lock.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "writer.lock"
    >>> first, second = ProcessLock(file), ProcessLock(file)  # the same process
    """

    def __init__(self, path: str | Path):
        if fcntl is None:
            self._lock = file_lock(path, timeout=0, once_per_process=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise _held(path) from error
            return
        # Not filelock, whose locks (flock) belong to the open file: forked workers inherit it, and would keep the lock
        # for some seconds after this process was killed.
        self._file = Path(path).open("wb")  # noqa: SIM115
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                self._file.close()
                raise _held(path) from error
            # Otherwise a file system without locks.


def _held(path: str | Path) -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "another process has the lock", os.fspath(path))
