"""Atomic writes: a file or folder appears under its name when it is complete, or not at all.

Everything is written next to its final path, under a hidden name that ends in `.tmp`, and renamed at the end. An
interrupted write leaves what was there before; a temporary file that a killed process leaves is never read.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Windows' errors (access denied, sharing violation) for files that another program has open, such as a virus scanner,
# and the waits in seconds before it is tried again.
_IN_USE = (5, 32)
_WAITS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def move(source: str | Path, target: str | Path) -> None:
    """Rename a file, whether or not the target exists, or a folder to a new name.

    Windows refuses this while another program has one of them open; it is then tried again for 4 s.

    Raises
    ------
    OSError
        It cannot be renamed.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a").write_text("1"), (folder / "b").write_text("2")
    >>> move(folder / "a", folder / "b")
    >>> [(file.name, file.read_text()) for file in folder.iterdir()]
    [('b', '1')]
    """
    for wait in (*_WAITS, None):
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if wait is None or getattr(error, "winerror", None) not in _IN_USE:
                raise
            time.sleep(wait)


def flush(path: str | Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "a"
    >>> _ = file.write_text("1")
    >>> flush(file)
    >>> flush(file.parent)
    """
    if not Path(path).is_dir():
        with open(path, "r+b") as file:  # Windows flushes files that are open for writing only
            os.fsync(file.fileno())
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders; it writes their entries itself
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to a file or folder, or a copy where links are not allowed, as on Windows.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a").write_text("1")
    >>> link_or_copy(folder / "a", folder / "b")
    >>> (folder / "b").read_text()
    '1'
    """
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except (OSError, NotImplementedError):
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


@contextmanager
def atomic_path(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield the temporary path at which to write a file, and rename it to `path` at the end.

    Parameters
    ----------
    path : path
        The file's final name. Its folder is created where it is missing.
    sync : bool
        Wait until the content is on the disk, so that the file also survives a power failure.

    Yields
    ------
    Path
        Where to write. Processes that write the same file at once get different paths; the last to finish replaces it.

    Raises
    ------
    OSError
        The file cannot be written or renamed; the temporary file is then removed, as after any other exception.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> with atomic_path(folder / "scores.csv") as unfinished:
    ...     _ = unfinished.write_text("id,wer")
    >>> [file.name for file in folder.iterdir()]
    ['scores.csv']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        if sync:
            flush(unfinished)
        move(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes, *, sync: bool = False) -> None:
    """Write a binary file atomically; parameters and errors are those of `atomic_path`.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "table.bin"
    >>> write_bytes(file, b"12")
    >>> file.read_bytes()
    b'12'
    """
    with atomic_path(path, sync=sync) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with the line ends that `text` has.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "reports" / "scores.csv"  # the folder is created too
    >>> write_text(file, "id,wer")
    >>> file.read_text()
    'id,wer'
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, **options: Any) -> None:
    """Write a JSON file atomically; `options` are those of `json.dumps`, by default an indentation of 1.

    Raises
    ------
    TypeError, ValueError
        `value` cannot be written as JSON; an existing file is then unchanged.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "scores.json"
    >>> write_json(file, {"wer": 0.1})
    >>> print(file.read_text(), end="")
    {
     "wer": 0.1
    }
    """
    write_text(path, json.dumps(value, **{"indent": 1, "ensure_ascii": False, **options}) + "\n")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield the temporary folder to fill, and rename it to `path`, which must not exist, at the end.

    Yields
    ------
    Path
        An empty folder next to `path`.

    Raises
    ------
    FileExistsError
        `path` exists.

    Examples
    --------
    >>> with atomic_folder(getfixture("tmp_path") / "model") as unfinished:
    ...     write_text(unfinished / "config.json", "{}")
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        move(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
