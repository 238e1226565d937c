"""The user's cache folder, and files that are derived once from another file and used by many runs."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from audiolm_lite.storage.atomic import atomic_path, write_json
from audiolm_lite.storage.locks import file_lock

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return AUDIOLM_LITE_CACHE if it is set, else the folder `audiolm_lite` in XDG_CACHE_HOME or ~/.cache.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"AUDIOLM_LITE_CACHE": "/scratch/cache"}):
    ...     cache_folder().as_posix()
    '/scratch/cache'
    """
    if folder := os.environ.get("AUDIOLM_LITE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiolm_lite"


def derived_paths(source: Path, suffix: str) -> tuple[Path, Path]:
    """Return where `derived_file` stores a file: next to its source, or in the cache folder.

    Examples
    --------
    >>> [path.name for path in derived_paths(Path("data/train.jsonl"), ".rows")]
    ['.train.jsonl.rows', '.train.jsonl.rows']
    """
    folder = hashlib.blake2b(os.fsencode(source.parent.resolve()), digest_size=8).hexdigest()
    name = f".{source.name}{suffix}"
    return source.parent / name, cache_folder() / "beside" / folder / name


def derived_file(source: Path, suffix: str, is_valid: Callable[[Path], bool], make: Callable[[Path], object]) -> Path:
    """Return a file that is derived from another; the first process that needs it makes it while the others wait.

    Parameters
    ----------
    source : Path
        The file from which it is made.
    suffix : str
        The derived file is called `.<name of source><suffix>`. It is stored next to `source` or, if that folder is
        read-only, in the cache folder.
    is_valid : callable
        Whether the derived file at a path, which may be missing or damaged, can be used.
    make : callable
        Writes the derived file to the temporary path it is given.

    Returns
    -------
    Path
        The derived file.

    Raises
    ------
    OSError
        Neither the source's folder nor the cache folder can be written to.

    Examples
    --------
    >>> source = getfixture("tmp_path") / "train.jsonl"
    >>> derived_file(source, ".rows", Path.is_file, lambda path: path.write_text("3")).name
    '.train.jsonl.rows'
    """
    adjacent, fallback = derived_paths(source, suffix)
    for derived in (adjacent, fallback):
        if is_valid(derived):
            return derived
    for derived in (adjacent, fallback):
        lock = file_lock(f"{derived}.lock")
        try:
            derived.parent.mkdir(parents=True, exist_ok=True)
            with lock:
                if not is_valid(derived):
                    for abandoned in derived.parent.glob(f".{escape(derived.name)}.*.tmp"):  # by a process now killed
                        abandoned.unlink(missing_ok=True)
                    with atomic_path(derived) as unfinished:
                        make(unfinished)
            break
        except OSError as error:
            # Not only a read-only folder: Windows replaces no file that another process has mapped.
            if derived == fallback or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            log.warning(
                "%s cannot be written to (%s): storing %s as %s",
                adjacent.parent,
                error.strerror,
                adjacent.name,
                fallback,
            )
    return derived


def remembered(kind: str, key: Any, compute: Callable[[], Any]) -> Any:
    """Return a value that takes long to compute, from the cache folder if it was computed before with the same key.

    The first process that needs it computes it while the others wait. Without a cache folder that can be written to, it
    is computed.

    Parameters
    ----------
    kind : str
        Name of the folder for values of this kind.
    key : JSON value
        Everything that the value depends on.
    compute : callable
        Returns the value, which is a JSON value.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"AUDIOLM_LITE_CACHE": str(getfixture("tmp_path"))}):
    ...     remembered("digests", ["a.bin", 3], lambda: "0a1b"), remembered("digests", ["a.bin", 3], lambda: "other")
    ('0a1b', '0a1b')
    """
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    file = cache_folder() / kind / f"{name}.json"
    lock = file_lock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        return compute()
    try:
        with suppress(OSError, ValueError):
            return json.loads(file.read_text(encoding="utf-8"))
        value = compute()
        with suppress(OSError):
            write_json(file, value)
        return value
    finally:
        lock.release()
