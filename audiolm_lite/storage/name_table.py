"""Tables of names with a few numbers of each, found by bisection; under a memory map they cost no memory to open.

crc32    [N] uint32          of the names' UTF-8 bytes, ascending
entries  [N, K + 2] uint64   K numbers of each name, and where it begins and ends in `names`
names    uint8               the names' UTF-8 bytes
"""

import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


class Names:
    """Look names up in a table.

    Parameters
    ----------
    arrays : mapping
        The arrays, as `table_of` makes them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._crc32, self._entries = arrays["crc32"], arrays["entries"]
        # One name is looked up faster in these than in arrays.
        self._codes, self._names = memoryview(self._crc32), memoryview(arrays["names"])
        self._flat, self._width = memoryview(self._entries.reshape(-1)), self._entries.shape[1]

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of the table."""
        for begin, end in self._entries[:, -2:].tolist():
            yield str(self._names[begin:end], "utf-8", "surrogatepass")

    def find(self, name: str) -> list[int] | None:
        """Numbers of a name, of the first where it is there more than once; None for an unknown one."""
        encoded = _encoded(name)
        code, codes, width = zlib.crc32(encoded), self._codes, self._width
        place = bisect_left(codes, code)
        while place < len(codes) and codes[place] == code:
            *numbers, begin, end = self._flat[place * width : (place + 1) * width].tolist()
            if self._names[begin:end] == encoded:
                return numbers
            place += 1
        return None

    def find_all(self, names: Sequence[str], number: int) -> np.ndarray:
        """One of the numbers [N] int64 of many names, -1 for unknown ones."""
        encoded = [_encoded(name) for name in names]
        codes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(encoded))
        found = np.full(len(encoded), -1, np.int64)
        if len(self) == 0:
            return found
        # In ascending order, a binary search finds most of its way in the processor's caches.
        order = np.argsort(codes)
        places = np.empty(len(encoded), np.int64)
        places[order] = np.searchsorted(self._crc32, codes[order])
        entries = self._entries[np.minimum(places, len(self) - 1)]
        spans = zip(entries[:, -2].tolist(), entries[:, -1].tolist(), encoded)
        same = np.fromiter((self._names[begin:end] == name for begin, end, name in spans), bool, len(encoded))
        found[same] = entries[same, number]
        for place in np.flatnonzero(~same).tolist():  # unknown, or not the first of several with its code
            if numbers := self.find(names[place]):
                found[place] = numbers[number]
        return found


def table_of(names: Iterable[str], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of a table of N names and their numbers [N, K]."""
    encoded = [_encoded(name) for name in names]
    codes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(encoded))
    order = np.argsort(codes, kind="stable")
    encoded = [encoded[place] for place in order]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.uint64, len(encoded)), dtype=np.uint64)
    begins = np.concatenate([np.zeros(1, np.uint64), ends])[: len(ends)]
    return {
        "crc32": codes[order],
        "entries": np.concatenate([numbers[order], begins[:, None], ends[:, None]], axis=1).astype(np.uint64),
        "names": np.frombuffer(b"".join(encoded), np.uint8),
    }


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # a file's name may be no valid Unicode
