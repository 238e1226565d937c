"""Files inside tar files, read where they lie: `audio_3.tar/00000012.flac` is a path like any other.

Beside `audio_3.tar` lies `.audio_3.tar.members`, a table (see names.py) of the first byte and the size of each member,
made when the first of them is asked for, and again when the tar file has changed. So a member is read at once, in any
order, by any number of processes. Tar files must not be compressed (members may be).
"""

import io
import os
import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save

from audiolm_lite.storage.cache import made_once
from audiolm_lite.storage.mapped_arrays import arrays_of, map_file, metadata_of
from audiolm_lite.storage.name_table import Names, table_of


def open_member(path: Path) -> BinaryIO | None:
    """Read a file that lies in a tar file.

    Parameters
    ----------
    path : Path
        `<tar file>/<member>`; the tar file's name ends in .tar.

    Returns
    -------
    BytesIO
        The member's bytes, with `name`: the path. None where no part of the path is a tar file.

    Raises
    ------
    OSError
        There is no such member, or the tar file cannot be read up to it.
    """
    file = tar_of(path)
    if file is None:
        return None
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        members, fault = _members(file, status.st_size, status.st_mtime_ns)
        place = members.find(str(path.relative_to(file)))
        if place is None:
            raise FileNotFoundError(fault or f"{file.name} has no such member; correct the name, or write it again")
        begin, size = place
        stream.seek(begin)
        data = io.BytesIO(stream.read(size))
    if data.getbuffer().nbytes < size:
        raise OSError(f"{file.name} ends before it does; fetch it again")
    data.name = str(path)  # what messages call it
    return data


def tar_of(path: Path) -> Path | None:
    """The tar file that a path leads into; None where it leads into none."""
    if ".tar/" not in str(path):
        return None
    return next((folder for folder in path.parents if folder.suffix == ".tar" and folder.is_file()), None)


# Each keeps a file descriptor, and a corpus may have more shards than a process may have of these.
@lru_cache(maxsize=64)
def _members(file: Path, size: int, mtime_ns: int) -> tuple[Names, str]:
    """Table of a tar file in this state, and why it does not have all members."""
    state = f"1 {size} {mtime_ns}"  # the first number is that of the format

    def is_good(table: Path) -> bool:
        try:
            with table.open("rb") as stream:
                return metadata_of(map_file(stream))["state"] == state
        except (OSError, ValueError, KeyError):
            return False

    table = made_once(file, ".members", is_good, lambda unfinished: _write(file, state, unfinished))
    with table.open("rb") as stream:
        data = map_file(stream)
    return Names(arrays_of(data)), metadata_of(data)["fault"]


def _write(file: Path, state: str, table: Path) -> None:
    names, places, fault = [], [], ""
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isreg():
                    names.append(str(PurePosixPath(member.name)))  # without "./"
                    places.append((member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        fault = f"{file.name} cannot be read up to it ({error}); fetch it again"
    arrays = table_of(names, np.array(places, np.uint64).reshape(-1, 2))
    table.write_bytes(save(arrays, {"state": state, "fault": fault}))
