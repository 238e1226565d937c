"""Where files go that are made or fetched once and used by many runs."""

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of such files: AUDIOLM_LITE_CACHE, else audiolm_lite in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("AUDIOLM_LITE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiolm_lite"


def made_once(file: Path, suffix: str, is_good: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """File that is made from another, by the first process that asks for it while the others wait.

    Parameters
    ----------
    file : Path
        What it is made from.
    suffix : str
        It is called `.<file's name><suffix>` and lies beside the file or, where that folder cannot be written, in the
        cache folder.
    is_good : callable
        Whether the file there (which may be missing or damaged) can be used.
    make : callable
        Writes the file to the path it is given, which is not yet the final one.

    Raises
    ------
    OSError
        Neither the file's folder nor the cache folder can be written.
    """
    folder = hashlib.blake2b(os.fsencode(file.parent.resolve()), digest_size=8).hexdigest()
    name = f".{file.name}{suffix}"
    beside, fallback = file.parent / name, cache_folder() / "beside" / folder / name
    for made in (beside, fallback):
        if is_good(made):
            return made
    for made in (beside, fallback):
        lock = FileLock(f"{made}.lock")
        try:
            made.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            if made == fallback or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            log.warning("%s cannot be written (%s): %s goes to %s", beside.parent, error.strerror, name, fallback)
            continue
        unfinished = made.with_name(made.name + ".tmp")
        try:
            if not is_good(made):
                make(unfinished)
                os.replace(unfinished, made)
            break
        finally:
            unfinished.unlink(missing_ok=True)
            lock.release()
    return made
