"""The files of a feature store (format 2), for its writer and its reader.

store.json                        format, fingerprint, dtype, rule for long audio, L, D
features-<rank>-<n>.safetensors   a tensor [L, T, D] per key; with int8, also its scale [L, D] as "<key>\\0scale"
index-<rank>.jsonl                a line per finished shard, {"shard", "bytes", "crc32", "cut"}, or per shard whose line
                                  is revoked, {"lost": shard}
keys.safetensors                  byte offsets of all keys, made from the other files (see key_table.py)
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.config.errors import UserError
from audiolm_lite.storage.hashes import crc32_of

FORMAT = 2
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
# Follows the key in the name of an int8 tensor's scale. No key ends in it: a file name cannot contain a NUL.
SCALE = "\0scale"


class FeatureStoreError(UserError, ValueError):
    """A feature store that cannot be used; the message says why and what to do."""


def read_header(folder: Path) -> dict[str, Any]:
    """Return the content of store.json; raises FeatureStoreError if it is missing or has another format.

    Examples
    --------
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> header = read_header(folder)
    >>> header["fingerprint"], header["dtype"], header["num_layers"], header["feature_dim"]
    ({'type': 'example'}, 'float16', 2, 8)
    """
    file = folder / "store.json"
    if not file.is_file():
        raise FeatureStoreError(f"{folder}: no feature store (no store.json); run the extraction or check the path")
    header = json.loads(file.read_text(encoding="utf-8"))
    if header["format"] != FORMAT:
        raise FeatureStoreError(
            f"{file}: format {header['format']}, this version reads format {FORMAT}; delete the folder or choose "
            "another, and run the extraction again"
        )
    return header


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Return the index lines of the finished shards of all ranks, without those that were revoked.

    A last line without a line end was interrupted and is ignored.

    Examples
    --------
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> [line["shard"] for line in read_index(folder)]
    ['features-00-00000.safetensors']
    """
    lines: list[dict[str, Any]] = []
    for file in sorted(folder.glob("index-*.jsonl")):
        lines += map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])
    lost = {line["lost"] for line in lines if "lost" in line}
    return [line for line in lines if "shard" in line and line["shard"] not in lost]


def find_damage(folder: Path, line: dict[str, Any], contents: bool) -> str:
    """Return what is wrong with the shard of an index line, "" for nothing; only with `contents` is the shard read.

    Examples
    --------
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> line = read_index(folder)[0]
    >>> find_damage(folder, line, contents=True)
    ''
    >>> (folder / line["shard"]).unlink()
    >>> find_damage(folder, line, contents=False)
    'is missing'
    """
    file = folder / line["shard"]
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != line["bytes"]:
        return f"has {size} bytes of {line['bytes']}"
    if contents and crc32_of(file) != line["crc32"]:
        return "is damaged: its checksum is not the one in the index"
    return ""


def require_equal(folder: Path, stored: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raise FeatureStoreError with every entry (dotted for nested ones) in which the two settings differ.

    Examples
    --------
    >>> require_equal(Path("features"), {"dtype": "int8"}, {"dtype": "float32"})
    Traceback (most recent call last):
    audiolm_lite.features.store_format.FeatureStoreError: features: made with other settings than requested:
      dtype: stored 'int8', requested 'float32'
    Use the stored settings, or extract into another folder.
    """
    stored, requested = _flatten(stored), _flatten(requested)
    lines = [
        f"{name}: stored {stored.get(name, 'nothing')!r}, requested {requested.get(name, 'nothing')!r}"
        for name in sorted(stored | requested)
        if stored.get(name, "nothing") != requested.get(name, "nothing")
    ]
    if lines:
        raise FeatureStoreError(
            f"{folder}: made with other settings than requested:\n  "
            + "\n  ".join(lines)
            + "\nUse the stored settings, or extract into another folder."
        )


def quantize_int8(features: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize features [L, T, D] to int8, with one float32 scale per layer and dimension.

    The channels of speech encoders differ in size by a factor of a thousand: one scale for all would leave most of them
    no bits.

    Returns
    -------
    tuple of Tensor
        int8 [L, T, D] and scale [L, D]; `int8[l, t, d] * scale[l, d]` are the features again.

    Examples
    --------
    >>> quantize_int8(torch.tensor([[[0.5, 127.0], [-1.27, 0.0]]]))
    (tensor([[[  50,  127],
             [-127,    0]]], dtype=torch.int8), tensor([[0.0100, 1.0000]]))
    """
    features = features.float()
    # The smallest scale is a normal number, so that a silent channel divides to 0.
    scale = (features.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (features / scale[:, None]).round().to(torch.int8), scale


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
