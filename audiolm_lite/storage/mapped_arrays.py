"""Arrays of a safetensors file under a memory map: files of any size open equally fast, and processes share the memory.

Files of this kind are tables that can be rebuilt from the files they describe, so their content is not validated.
"""

import json
import mmap
import os
import threading
from typing import BinaryIO

import numpy as np

_DTYPES = {"F64": "<f8", "U64": "<u8", "U32": "<u4", "U8": "<u1", "BOOL": "?"}


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map a file that is not empty into memory; pages are read on first access and freed with the map.

    Raises
    ------
    ValueError
        The file is empty.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "table.bin"
    >>> _ = path.write_bytes(b"content")
    >>> with path.open("rb") as file:
    ...     mapped = map_file(file)
    >>> mapped[:3]
    b'con'
    """
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


_READING = threading.Lock()


def read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """Read bytes of an open file, which threads may share; fewer only at the end of the file. Its position stays.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "table.bin"
    >>> _ = path.write_bytes(b"012345")
    >>> with path.open("rb") as file:
    ...     read_at(file, 2, 3), read_at(file, 9, 4)
    (b'34', b'45')
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    with _READING:  # Windows: threads share the position in the file
        before = file.tell()
        file.seek(offset)
        data = file.read(size)
        file.seek(before)
    return data


def read_arrays(data: bytes | mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file by name, as views of `data`, and the strings of its metadata.

    Raises
    ------
    ValueError, KeyError
        `data` is not a complete safetensors file, or has an array of another dtype than float64, uint64, uint32, uint8
        and bool.

    Examples
    --------
    >>> from safetensors.numpy import save
    >>> read_arrays(save({"sizes": np.array([3, 5], np.uint64)}, {"format": "1"}))
    ({'sizes': array([3, 5], dtype=uint64)}, {'format': '1'})
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        flat = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, start + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, metadata
