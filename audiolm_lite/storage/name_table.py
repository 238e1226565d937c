"""Tables of names with a few numbers per name: found by bisection, and read from a memory-mapped file.

A table is a safetensors file of three arrays, with any strings as metadata:

crc32    [N] uint32          CRC-32 of each name's UTF-8 bytes, ascending
entries  [N, K + 2] uint64   the K numbers of each name, and the begin and end of the name in `names`
names    uint8               the names' UTF-8 bytes
"""

import mmap
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from audiolm_lite.storage.mapped_arrays import map_file, read_arrays


class NameTable:
    """Find the numbers of a name.

    Parameters
    ----------
    data : bytes or mmap
        Content of a table, as `table_bytes` returns it; `NameTable.open` maps that of a file.

    Attributes
    ----------
    metadata : dict of str
        Strings stored with the table.

    Raises
    ------
    ValueError, KeyError
        `data` is not a table.

    Examples
    --------
    >>> table = NameTable(table_bytes(["b.wav", "a.wav"], np.array([[3, 0], [5, 8]])))
    >>> table.find("a.wav"), table.find("c.wav")
    ([5, 8], None)
    >>> table.find_all(["b.wav", "c.wav", "a.wav"], 0)
    array([ 3, -1,  5])
    """

    def __init__(self, data: bytes | mmap.mmap):
        arrays, self.metadata = read_arrays(data)
        self._crc32, self._entries = arrays["crc32"], arrays["entries"]
        # Single elements are read faster from memory views than from arrays.
        self._codes, self._names = self._crc32.data, arrays["names"].data
        self._flat, self._width = self._entries.reshape(-1).data, self._entries.shape[1]

    @classmethod
    def open(cls, path: Path) -> "NameTable":
        """Map the table in a file; raises OSError if it cannot be read, ValueError or KeyError if it is damaged."""
        with path.open("rb") as file:
            return cls(map_file(file))

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of the table."""
        for begin, end in self._entries[:, -2:].tolist():
            yield str(self._names[begin:end], "utf-8", "surrogatepass")

    def find(self, name: str) -> list[int] | None:
        """Return the K numbers of a name, those of its first entry if it has several; None for an unknown name."""
        encoded = _encode(name)
        code, codes, width = zlib.crc32(encoded), self._codes, self._width
        position = bisect_left(codes, code)
        while position < len(codes) and codes[position] == code:
            *numbers, begin, end = self._flat[position * width : (position + 1) * width].tolist()
            if self._names[begin:end] == encoded:
                return numbers
            position += 1
        return None

    def find_all(self, names: Sequence[str], column: int) -> np.ndarray:
        """Return number `column` of many names as [N] int64, -1 for unknown names."""
        encoded = [_encode(name) for name in names]
        codes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(encoded))
        numbers = np.full(len(encoded), -1, np.int64)
        if len(self) == 0:
            return numbers
        # In ascending order, consecutive binary searches touch the same cache lines.
        order = np.argsort(codes)
        positions = np.empty(len(encoded), np.int64)
        positions[order] = np.searchsorted(self._crc32, codes[order])
        entries = self._entries[np.minimum(positions, len(self) - 1)]
        spans = zip(entries[:, -2].tolist(), entries[:, -1].tolist(), encoded)
        same = np.fromiter((self._names[begin:end] == name for begin, end, name in spans), bool, len(encoded))
        numbers[same] = entries[same, column]
        for index in np.flatnonzero(~same).tolist():  # an unknown name, or not the first of several with equal CRC-32
            if entry := self.find(names[index]):
                numbers[index] = entry[column]
        return numbers


def table_bytes(names: Iterable[str], numbers: np.ndarray, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a table file of N names, their numbers [N, K] and `metadata`.

    Examples
    --------
    >>> table = NameTable(table_bytes(["b.wav", "a.wav"], np.array([[3], [5]]), {"format": "1"}))
    >>> sorted(table), table.find("b.wav"), table.metadata
    (['a.wav', 'b.wav'], [3], {'format': '1'})
    """
    encoded = [_encode(name) for name in names]
    codes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(encoded))
    order = np.argsort(codes, kind="stable")
    encoded = [encoded[index] for index in order]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.uint64, len(encoded)), dtype=np.uint64)
    begins = np.concatenate([np.zeros(1, np.uint64), ends])[: len(ends)]
    arrays: dict[str, np.ndarray] = {
        "crc32": codes[order],
        "entries": np.concatenate([numbers[order], begins[:, None], ends[:, None]], axis=1).astype(np.uint64),
        "names": np.frombuffer(b"".join(encoded), np.uint8),
    }
    return save(arrays, dict(metadata or {}))


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # the name of a file may be invalid Unicode
