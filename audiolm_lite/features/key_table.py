"""The table of a feature store's keys: the shard, length and byte offsets of each.

`keys.safetensors` is a `NameTable`: it is memory-mapped, so opening it takes equally long for ten keys as for ten
million, and all processes of a machine share it. The numbers of a key are

    shard    its index in the metadata's "shards", a JSON list of file names
    frames   T
    begin    first byte of the features in the shard's file
    scale    first byte of their scale, 0 without one

The metadata's "index" is the SHA-256 of the index lines that the table was made from. If these have changed, the table
is made again from the headers of the shards.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_lite.features.store_format import SCALE
from audiolm_lite.storage.atomic import write_bytes
from audiolm_lite.storage.name_table import NameTable, table_bytes

FILE = "keys.safetensors"
FRAMES = 1  # column of the table


def open_key_table(folder: Path, lines: list[dict[str, Any]]) -> NameTable:
    """Open the table of the keys in some shards of a store, after making it where it is missing or out of date.

    Parameters
    ----------
    folder : Path
        The store.
    lines : list of dict
        Index lines of the shards, which must not be damaged.

    Returns
    -------
    NameTable
        In memory if the folder is read-only or the disk is full; otherwise memory-mapped.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.features.store_format import read_index
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> table = open_key_table(folder, read_index(folder))
    >>> list(table), table.find("a.flac")[FRAMES]
    (['a.flac'], 50)
    """
    index = hashlib.sha256("".join(json.dumps(line) + "\n" for line in lines).encode()).hexdigest()
    table = _open(folder / FILE, index)
    if table is None:
        content = _make_table(folder, [line["shard"] for line in lines], index)
        try:
            write_bytes(folder / FILE, content, sync=True)
            table = _open(folder / FILE, index)
        except OSError:
            pass
    return NameTable(content) if table is None else table


def shard_names(table: NameTable) -> list[str]:
    """File names of the shards, by their index in the table.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.features.store_format import read_index
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> shard_names(open_key_table(folder, read_index(folder)))
    ['features-00-00000.safetensors']
    """
    return json.loads(table.metadata["shards"])


def _open(file: Path, index: str) -> NameTable | None:
    """Map a table; None if it is missing, damaged or made from another index."""
    try:
        table = NameTable.open(file)
    except (OSError, ValueError, KeyError):
        return None
    return table if table.metadata.get("index") == index else None


def _make_table(folder: Path, shards: list[str], index: str) -> bytes:
    """Content of keys.safetensors."""
    names: list[str] = []
    numbers: list[np.ndarray] = [np.zeros((0, 4), np.uint64)]
    for number, shard in enumerate(shards):
        with (folder / shard).open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(length))
        start = 8 + length
        header.pop("__metadata__", None)
        keys = [name for name in header if not name.endswith(SCALE)]
        names += keys
        scales = [header[key + SCALE]["data_offsets"][0] + start if key + SCALE in header else 0 for key in keys]
        entries = [
            (number, header[key]["shape"][1], header[key]["data_offsets"][0] + start, scale)
            for key, scale in zip(keys, scales)
        ]
        numbers.append(np.array(entries, np.uint64).reshape(-1, 4))
    return table_bytes(names, np.concatenate(numbers), {"index": index, "shards": json.dumps(shards)})
