"""What the files of a feature store look like (format 2), for its writer and its reader.

store.json                        format, fingerprint, dtype, rule for long audio, L, D
features-<rank>-<n>.safetensors   a tensor [L, T, D] a key; int8 has its scale [L, D] beside it, "<key>\\0scale"
index-<rank>.jsonl                a line a finished shard: {"shard", "bytes", "crc32", "cut"}, or one that is given up:
                                  {"lost": shard}
keys.safetensors                  where each key is, made from the others (see lookup.py)
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.config.errors import UserError

FORMAT = 2
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
# Follows the key in the name of an int8 tensor's scale. No key ends in it: a file name cannot hold a NUL.
SCALE = "\0scale"


class FeatureStoreError(UserError, ValueError):
    """A feature store that cannot be used; the message says why and what to do."""


def read_header(folder: Path) -> dict[str, Any]:
    """Content of store.json; raises FeatureStoreError where there is none or it is of another format."""
    file = folder / "store.json"
    if not file.is_file():
        raise FeatureStoreError(f"{folder}: no feature store (no store.json); run the extraction or correct the path")
    header = json.loads(file.read_text(encoding="utf-8"))
    if header["format"] != FORMAT:
        raise FeatureStoreError(
            f"{file}: format {header['format']}, this version reads format {FORMAT}; delete the folder or name another "
            "one, and run the extraction again"
        )
    return header


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Lines of the finished shards of all ranks, without those given up.

    A last line without its end was interrupted and does not count.
    """
    lines: list[dict[str, Any]] = []
    for file in sorted(folder.glob("index-*.jsonl")):
        lines += map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])
    lost = {line["lost"] for line in lines if "lost" in line}
    return [line for line in lines if "shard" in line and line["shard"] not in lost]


def damage(folder: Path, line: dict[str, Any], contents: bool) -> str:
    """Say what is wrong with the shard of an index line: "" where nothing is. Only `contents` reads the shard."""
    file = folder / line["shard"]
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != line["bytes"]:
        return f"has {size} bytes of {line['bytes']}"
    if contents and checksum(file) != line["crc32"]:
        return "is damaged: its checksum is not the one in the index"
    return ""


def checksum(file: Path) -> int:
    """CRC-32 of a file: misses one damage in 4 billion, and keeps up with disks, which cryptographic hashes do not."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def require_equal(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise FeatureStoreError naming every entry (dotted for nested ones) in which the two differ."""
    stored, asked = _flat(stored), _flat(asked)
    differing = [name for name in sorted(stored | asked) if stored.get(name, "nothing") != asked.get(name, "nothing")]
    if differing:
        lines = [
            f"{name}: stored {stored.get(name, 'nothing')!r}, asked {asked.get(name, 'nothing')!r}"
            for name in differing
        ]
        raise FeatureStoreError(
            f"{folder}: made with other settings than asked for:\n  "
            + "\n  ".join(lines)
            + "\nUse the stored settings, or extract into another folder."
        )


def quantise(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features [L, T, D] as int8 and the scale [L, D], float32, that gives them back: one a channel, over time.

    Channels of speech encoders differ in size a thousandfold, so one scale for all would leave most of them no bits.
    """
    features = features.float()
    # The smallest scale is a normal number, so that a silent channel divides to 0.
    scale = (features.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (features / scale[:, None]).round().to(torch.int8), scale


def write_atomically(file: Path, data: bytes) -> None:
    """Give `file` this content or leave it as it was, whatever interrupts; on the disk when this returns."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")  # other ranks may write the same file
    try:
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
