"""Files inside tar files, read without unpacking: `audio_3.tar/00000012.flac` is a path like any other.

A table with the first byte and the size of each member (a `NameTable`, file format 1) is stored next to `audio_3.tar`
as `.audio_3.tar.members`. It is made when the first member is read, and again when the tar file has changed. So any
number of processes can read members in any order. Tar files must not be compressed (members may be).
"""

import io
import os
import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from audiolm_lite.storage.cache import derived_file
from audiolm_lite.storage.name_table import NameTable, table_bytes


def open_member(path: Path) -> BinaryIO | None:
    """Read a file that is in a tar file.

    Parameters
    ----------
    path : Path
        `<tar file>/<member>`; the tar file's name ends in .tar.

    Returns
    -------
    BytesIO
        The member's bytes, with `path` as the attribute `name`. None if no part of the path is a tar file.

    Raises
    ------
    OSError
        There is no such member, or the tar file is damaged before it.

    Examples
    --------
    >>> shard, clip = getfixture("tmp_path") / "shard.tar", getfixture("tmp_path") / "clip.txt"
    >>> _ = clip.write_text("audio")
    >>> with tarfile.open(shard, "w") as tar:
    ...     tar.add(clip, "a/clip.txt")
    >>> open_member(shard / "a/clip.txt").read()
    b'audio'
    """
    file = tar_of(path)
    if file is None:
        return None
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        members = _members(file, status.st_size, status.st_mtime_ns)
        entry = members.find(path.relative_to(file).as_posix())
        if entry is None:
            fault = members.metadata["fault"]
            raise FileNotFoundError(fault or f"{file.name} has no such member; check the name, or write the tar again")
        begin, size = entry
        stream.seek(begin)
        data = io.BytesIO(stream.read(size))
    if data.getbuffer().nbytes < size:
        raise OSError(f"{file.name} ends before the end of this member; download it again")
    data.name = str(path)  # for messages
    return data


def tar_of(path: Path) -> Path | None:
    """Return the tar file in a path; None if no part of the path is a tar file.

    Examples
    --------
    >>> shard = getfixture("tmp_path") / "audio_3.tar"
    >>> shard.touch()
    >>> tar_of(shard / "00000012.flac").name
    'audio_3.tar'
    >>> tar_of(shard.parent / "00000012.flac") is None
    True
    """
    if ".tar/" not in path.as_posix():
        return None
    return next((folder for folder in path.parents if folder.suffix == ".tar" and folder.is_file()), None)


# Each table keeps a file descriptor, and a corpus may have more shards than a process may have descriptors.
@lru_cache(maxsize=64)
def _members(file: Path, size: int, mtime_ns: int) -> NameTable:
    """Table of a tar file in this state; its metadata has `state`, and as `fault` why it lacks members."""
    state = f"1 {size} {mtime_ns}"  # the first number is that of the format

    def is_valid(table: Path) -> bool:
        try:
            return NameTable.open(table).metadata["state"] == state
        except (OSError, ValueError, KeyError):
            return False

    return NameTable.open(derived_file(file, ".members", is_valid, lambda table: _write_table(file, state, table)))


def _write_table(file: Path, state: str, table: Path) -> None:
    names, entries, fault = [], [], ""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isreg():
                    names.append(str(PurePosixPath(member.name)))  # without "./"
                    entries.append((member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        fault = f"{file.name} cannot be read up to this member ({error}); download it again"
    numbers = np.array(entries, np.uint64).reshape(-1, 2)
    table.write_bytes(table_bytes(names, numbers, {"state": state, "fault": fault}))
