"""Backbones in the user's cache: one folder each, with the hashes of its files.

`backbones/<name>/` in the cache folder has the model in transformers' format, and `backbone.json` with its origin,
licence, digest, and size, modification time and SHA-256 of each file. The folder appears when it is complete.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.known import KNOWN, WEIGHTS
from audiolm_lite.storage.atomic import write_json
from audiolm_lite.storage.cache import cache_folder
from audiolm_lite.storage.hashes import sha256_of

RECORD = "backbone.json"
FORMAT = 1  # raised when a converter writes other files: folders of an earlier format are made again


def backbone_folder(name: str) -> Path:
    """Folder of a backbone in the cache, which may be missing.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", {"AUDIOLM_LITE_CACHE": "/scratch/cache"}):
    ...     backbone_folder("whisper-tiny.en").as_posix()
    '/scratch/cache/backbones/whisper-tiny.en'
    """
    return cache_folder() / "backbones" / name


def tensors_digest(*paths: Path) -> str:
    """SHA-256 of the tensors of safetensors files: names in order, dtypes, shapes and bytes; not of their metadata.

    How the tensors are split into files does not matter.

    Examples
    --------
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> path = getfixture("tmp_path") / "model.safetensors"
    >>> save_file({"b": torch.zeros(2), "a": torch.ones(1)}, path)
    >>> first = tensors_digest(path)
    >>> save_file({"a": torch.ones(1), "b": torch.zeros(2)}, path, metadata={"format": "pt"})
    >>> tensors_digest(path) == first
    True
    """
    digest = hashlib.sha256()
    with ExitStack() as files:
        entries = []
        for path in paths:
            file = files.enter_context(path.open("rb"))
            # 8 bytes: length of the header; header: JSON, name -> dtype, shape, offsets of the data that follow it.
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            entries += [(name, file, 8 + length, header[name]) for name in header.keys() - {"__metadata__"}]
        for name, file, first, entry in sorted(entries, key=lambda found: found[0]):
            begin, end = entry["data_offsets"]
            digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
            file.seek(first + begin)
            digest.update(file.read(end - begin))
    return digest.hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Content of `backbone.json`; None if there is none of this format.

    Examples
    --------
    >>> read_record(getfixture("tmp_path")) is None
    True
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def is_intact(folder: Path, thorough: bool = False) -> bool:
    """Whether a folder has the files that it was made with.

    Parameters
    ----------
    folder : Path
        A folder of `backbone_folder`, which may be missing.
    thorough : bool
        Read all files and compare their hashes. Otherwise a file is only read if its size or its time of modification
        is not that of the record, for example in a copy of the folder.

    Examples
    --------
    >>> is_intact(getfixture("tmp_path"))
    False
    """
    record = read_record(folder)
    if record is None:
        return False
    try:
        same = all(_stamp(folder / name) == entry["stamp"] for name, entry in record["files"].items())
        if same and not thorough:
            return True
        if any(sha256_of(folder / name) != entry["sha256"] for name, entry in record["files"].items()):
            return False
        if not same:
            entries = {name: {**entry, "stamp": _stamp(folder / name)} for name, entry in record["files"].items()}
            write_json(folder / RECORD, {**record, "files": entries})
    except FileNotFoundError:
        return False
    except OSError:  # a cache that cannot be written to: the files are right, and are read again next time
        return True
    return True


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def store(name: str, make: Callable[[Path], str]) -> Path:
    """Fill the folder of a backbone in the cache; a damaged one is replaced once its successor is complete.

    Parameters
    ----------
    name : str
        Name of the backbone. The caller holds its lock.
    make : callable
        Writes the files to the folder it is given and returns their origin in words.

    Returns
    -------
    Path
        The folder.
    """
    folder = backbone_folder(name)
    unfinished = folder.with_name(f".{name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        origin = make(unfinished)
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        record = {
            "format": FORMAT,
            "name": name,
            "origin": origin,
            "licence": KNOWN[name].licence,
            "digest": tensors_digest(unfinished / WEIGHTS),
            "files": {
                path.relative_to(unfinished).as_posix(): {"sha256": sha256_of(path), "stamp": _stamp(path)}
                for path in files
            },
        }
        write_json(unfinished / RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
