"""Arrays of a safetensors file under a memory map: opening costs the same for any size, and processes share the memory.

Files of this kind are tables that can be made anew from what they describe, so they are read without checking.
"""

import json
import mmap
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_NAMES = {"F64": "<f8", "U64": "<u8", "U32": "<u4", "U8": "<u1", "BOOL": "?"}
_DTYPES = {np.dtype(dtype): name for name, dtype in _NAMES.items()}


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


def write_columns(
    file: Path,
    dtypes: Mapping[str, Any],
    portions: Iterable[Mapping[str, np.ndarray]],
    metadata: Callable[[], dict[str, str]],
) -> None:
    """Write one-dimensional arrays that come in portions, of which no more than one is held in memory.

    Parameters
    ----------
    file : Path
        Where they go; the parts of each array wait in temporary files beside it.
    dtypes : mapping
        Name -> dtype of each array, those of the widest numbers first.
    portions : iterable of mapping
        Name -> the next part of the array.
    metadata : callable
        Gives the strings that go along, after the last portion.
    """
    with ExitStack() as stack:
        parts = {name: stack.enter_context(tempfile.TemporaryFile(dir=file.parent)) for name in dtypes}
        for portion in portions:
            for name, part in parts.items():
                part.write(np.ascontiguousarray(portion[name], dtypes[name]).data)
        header: dict[str, Any] = {"__metadata__": metadata()}
        begin = 0
        for name, part in parts.items():
            dtype, end = np.dtype(dtypes[name]), begin + part.tell()
            shape = [(end - begin) // dtype.itemsize]
            header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
            begin = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with file.open("wb") as out:
            out.write(struct.pack("<Q", len(encoded)) + encoded)
            for part in parts.values():
                part.seek(0)
                shutil.copyfileobj(part, out, 1 << 20)


def _header(data: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """Header of the file, and where its arrays begin."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end
