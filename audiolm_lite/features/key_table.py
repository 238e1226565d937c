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
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from audiolm_lite.features.store_format import SCALE, write_atomically
from audiolm_lite.storage.mapped_arrays import arrays_of, map_file, metadata_of
from audiolm_lite.storage.name_table import Names, table_of

FILE = "keys.safetensors"


class Lookup(Names):
    """Keys of some shards of a store, with shard (its place in `shards`), frames, first byte of features and scale.

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
        data: bytes | mmap | None = _map(folder / FILE)
        if data is None or metadata_of(data)["index"] != wanted:
            made = _table(folder, [line["shard"] for line in lines], wanted)
            try:
                write_atomically(folder / FILE, made)
                data = _map(folder / FILE) or made
            except OSError:  # a store that this user may only read, or a full disk: the table lives in memory then
                data = made
        self.shards: list[str] = json.loads(metadata_of(data)["shards"])
        super().__init__(arrays_of(data))


def _map(file: Path) -> mmap | None:
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return map_file(stream)


def _table(folder: Path, shards: list[str], index: str) -> bytes:
    """Content of keys.safetensors."""
    names: list[str] = []
    places: list[np.ndarray] = [np.zeros((0, 4), np.uint64)]
    for number, shard in enumerate(shards):
        with (folder / shard).open("rb") as stream:
            length = stream.read(8)
            header = json.loads(stream.read(struct.unpack("<Q", length)[0]))
        start = 8 + struct.unpack("<Q", length)[0]
        header.pop("__metadata__", None)
        keys = [name for name in header if not name.endswith(SCALE)]
        names += keys
        scales = [header[key + SCALE]["data_offsets"][0] + start if key + SCALE in header else 0 for key in keys]
        rows = [
            (number, header[key]["shape"][1], header[key]["data_offsets"][0] + start, scale)
            for key, scale in zip(keys, scales)
        ]
        places.append(np.array(rows, np.uint64).reshape(-1, 4))
    arrays = table_of(names, np.concatenate(places))
    return save(arrays, {"index": index, "shards": json.dumps(shards)})
