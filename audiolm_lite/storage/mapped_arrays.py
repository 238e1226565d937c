"""Arrays of a safetensors file under a memory map: opening costs the same for any size, and processes share the memory.

Files of this kind are tables that can be made anew from what they describe, so they are read without checking.
"""

import json
import mmap
from typing import Any, BinaryIO

import numpy as np

_NAMES = {"F64": "<f8", "U64": "<u8", "U32": "<u4", "U8": "<u1", "BOOL": "?"}


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map a whole file, which must not be empty; pages are read when touched, and leave with the map."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def metadata_of(data: bytes | mmap.mmap) -> dict[str, str]:
    """The strings that a safetensors file carries beside its arrays."""
    return _header(data)[0].get("__metadata__", {})


def arrays_of(data: bytes | mmap.mmap) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file, views of its bytes, by name."""
    header, start = _header(data)
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_NAMES[entry["dtype"]])
        flat = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, start + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def _header(data: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """Header of the file, and where its arrays begin."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end
