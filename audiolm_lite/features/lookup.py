"""Where each key of a feature store is: a table that is memory-mapped, so that opening it costs the same for 10 million
keys as for ten, and all processes of a machine share it.

`keys.safetensors` holds the keys in ascending order of their CRC-32:

    crc32    [N] uint32      of the key's UTF-8 bytes
    entries  [N, 6] uint64   shard (its place in the metadata's "shards"), frames T, first byte of the features in the
                             shard's file, first byte of their scale (0 if they have none), begin and end in `names`
    names    uint8           the keys' UTF-8 bytes

The metadata has "shards", a JSON list of file names, and "index", the SHA-256 of the index lines that the table was
made from. Where these have changed the table is made anew, from the headers of the shards.
"""

import hashlib
import json
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from audiolm_lite.features.format import SCALE, write_atomically
from audiolm_lite.mapped import arrays_of, map_file, metadata_of

FILE = "keys.safetensors"
_ENTRY = struct.Struct("<6Q")


class Lookup:
    """Keys of some shards of a store.

    Parameters
    ----------
    folder : Path
        The store.
    lines : list of dict
        Index lines of the shards, which must be whole.

    Attributes
    ----------
    shards : list of str
        File names of the shards.
    """

    def __init__(self, folder: Path, lines: list[dict[str, Any]]):
        wanted = hashlib.sha256("".join(json.dumps(line) + "\n" for line in lines).encode()).hexdigest()
        data = _map(folder / FILE)
        if data is None or metadata_of(data)["index"] != wanted:
            made = _table(folder, [line["shard"] for line in lines], wanted)
            try:
                write_atomically(folder / FILE, made)
                data = _map(folder / FILE)
            except OSError:  # a store that this user may only read, or a full disk: the table lives in memory then
                data = made
        self.shards: list[str] = json.loads(metadata_of(data)["shards"])
        self._arrays = arrays_of(data)
        # One key is looked up faster in these than in arrays.
        self._codes, self._names = memoryview(self._arrays["crc32"]), memoryview(self._arrays["names"])
        self._entries = memoryview(self._arrays["entries"].reshape(-1).view(np.uint8))

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        """All keys, in the order of the table."""
        for place in range(len(self)):
            *_, begin, end = _ENTRY.unpack_from(self._entries, place * _ENTRY.size)
            yield str(self._names[begin:end], "utf-8")

    def find(self, key: str) -> list[int] | None:
        """Place in `shards`, frames, first byte of the features and of their scale; None for an unknown key."""
        name = key.encode("utf-8", "surrogatepass")
        code = zlib.crc32(name)
        place = bisect_left(self._codes, code)
        while place < len(self._codes) and self._codes[place] == code:
            *entry, begin, end = _ENTRY.unpack_from(self._entries, place * _ENTRY.size)
            if self._names[begin:end] == name:
                return entry
            place += 1
        return None

    def frames_of(self, keys: Sequence[str]) -> np.ndarray:
        """Frames [N] int64 of many keys, -1 for unknown ones."""
        names = [key.encode("utf-8", "surrogatepass") for key in keys]
        codes = np.fromiter(map(zlib.crc32, names), np.uint32, len(names))
        frames = np.full(len(names), -1, np.int64)
        if len(self) == 0:
            return frames
        # In ascending order, a binary search finds most of its way in the processor's caches.
        order = np.argsort(codes)
        places = np.empty(len(names), np.int64)
        places[order] = np.searchsorted(self._arrays["crc32"], codes[order])
        entries = self._arrays["entries"][np.minimum(places, len(self) - 1)]
        begins, ends = entries[:, 4].tolist(), entries[:, 5].tolist()
        same = [self._names[begin:end] == name for begin, end, name in zip(begins, ends, names)]
        frames[same] = entries[same, 1]
        for place in np.flatnonzero(np.logical_not(same)).tolist():  # unknown, or the first of several with its code
            if entry := self.find(keys[place]):
                frames[place] = entry[1]
        return frames


def _map(file: Path) -> mmap | None:
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return map_file(stream)


def _table(folder: Path, shards: list[str], index: str) -> bytes:
    """Content of keys.safetensors."""
    names: list[bytes] = []
    places: list[np.ndarray] = []
    for number, shard in enumerate(shards):
        with (folder / shard).open("rb") as stream:
            length = stream.read(8)
            header = json.loads(stream.read(struct.unpack("<Q", length)[0]))
        start = 8 + struct.unpack("<Q", length)[0]
        header.pop("__metadata__", None)
        keys = [name for name in header if not name.endswith(SCALE)]
        names += [key.encode() for key in keys]
        scales = [header[key + SCALE]["data_offsets"][0] + start if key + SCALE in header else 0 for key in keys]
        rows = [
            (number, header[key]["shape"][1], header[key]["data_offsets"][0] + start, scale)
            for key, scale in zip(keys, scales)
        ]
        places.append(np.array(rows, np.uint64).reshape(-1, 4))
    codes = np.fromiter(map(zlib.crc32, names), np.uint32, len(names))
    order = np.argsort(codes, kind="stable")
    names = [names[i] for i in order]
    ends = np.cumsum(np.fromiter(map(len, names), np.uint64, len(names)))
    begins = np.concatenate([np.zeros(1, np.uint64), ends])[: len(ends)]
    place = np.concatenate(places)[order] if places else np.zeros((0, 4), np.uint64)
    tensors = {
        "crc32": codes[order],
        "entries": np.concatenate([place, begins[:, None], ends[:, None]], axis=1).astype(np.uint64),
        "names": np.frombuffer(b"".join(names), np.uint8),
    }
    return save(tensors, {"index": index, "shards": json.dumps(shards)})
