"""Digests of the weights of pretrained models on this machine, by which runs and model folders are compared.

A digest is one of the content: it stays the same if the model is moved, copied or split into other files.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.cache import backbone_folder, read_record, tensors_digest
from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.registry import map_sources, sources
from audiolm_lite.storage.cache import remembered
from audiolm_lite.storage.hashes import sha256_of

log = logging.getLogger(__name__)

# Patterns of the files with a model's weights, in the order in which libraries prefer them.
_WEIGHTS = (
    "model.safetensors",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
)
_INDEX = "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "merges.txt", "spiece.model")
WORTH_STORING = 16 << 20  # bytes; what is computed from smaller weights takes milliseconds


def source_digests(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Digests of the weights of all pretrained models that a configuration names and that are on this machine.

    Parameters
    ----------
    config : mapping
        Block of an encoder or an LLM; pretrained models are the entries `source`, at any depth.
    where : str
        Name of the block.

    Returns
    -------
    dict
        Path of the mapping that has the source ("encoder", "encoder/encoders/speech") -> digest. A `tokenizer` in a
        folder of its own is "llm/tokenizer". Models that are not on this machine are missing.

    Examples
    --------
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> folder = getfixture("tmp_path")
    >>> save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    >>> digests = source_digests({"source": str(folder), "lora": None}, "llm")
    >>> list(digests), digests["llm"][:8]
    (['llm'], '53c071d6')
    >>> source_digests({"source": "owner/never-downloaded"}, "llm")
    {}
    """
    digests: dict[str, str] = {}

    def keep(source: str, path: str) -> str:
        if digest := weights_digest(source):
            digests[path] = digest
        return source

    map_sources(config, keep, where)
    tokenizer = config.get("tokenizer")
    if isinstance(tokenizer, str) and (files := _files(Path(tokenizer).expanduser(), _TOKENIZER)):
        digests[f"{where}/tokenizer"] = sha256_of(*files)
    return digests


def weights_digest(source: str) -> str | None:
    """Digest of the weights of a pretrained model; None if they are not on this machine.

    Parameters
    ----------
    source : str
        Folder, file, name of a backbone (`known`), or name on the Hugging Face hub.

    Returns
    -------
    str or None
        Hexadecimal SHA-256 of the tensors (`tensors_digest`) or, for files other than safetensors, of the files. That
        of large weights is stored in the cache folder and used again while sizes and times of the files are the same.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "BEATs.pt").write_bytes(b"weights")
    >>> weights_digest(str(folder)) == weights_digest(str(folder / "BEATs.pt")) == sha256_of(folder / "BEATs.pt")
    True
    """
    if source in KNOWN and not Path(source).is_dir():
        record = read_record(backbone_folder(source))
        return None if record is None else record["digest"]
    try:
        files = _weight_files(_folder(source))
        return _stored_digest(files) if files else None
    except (OSError, ValueError) as error:  # loading the model reports it
        log.debug("%s: no digest of its weights: %s", source, error)
        return None


def source_bytes(config: Mapping[str, Any]) -> int:
    """Size in bytes of the weights on this machine of all pretrained models that a configuration names.

    Examples
    --------
    >>> source_bytes({"type": "logmel"})
    0
    """
    total = 0
    for source in sources(config):
        with suppress(OSError, ValueError):
            total += sum(path.stat().st_size for path in _weight_files(_folder(source)))
    return total


def _folder(source: str) -> Path:
    """Folder or file of a pretrained model; raises OSError or ValueError if it is not on this machine."""
    path = Path(source).expanduser()
    if source in KNOWN and not path.is_dir():
        return backbone_folder(source)
    return path if path.exists() else _snapshot(source)


def _snapshot(source: str) -> Path:
    """Local copy of a repository of the hub; raises OSError or ValueError without one."""
    from huggingface_hub import snapshot_download  # slow to import, and only needed for names

    return Path(snapshot_download(source, local_files_only=True))


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (index := path / _INDEX).is_file() and not (path / "model.safetensors").is_file():
        return sorted({path / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    return next(filter(None, (_files(path, (pattern,)) for pattern in _WEIGHTS)), [])


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _stored_digest(files: list[Path]) -> str:
    status = [path.stat() for path in files]
    if sum(entry.st_size for entry in status) < WORTH_STORING:
        return _digest(files)
    stamp = [[str(path.resolve()), entry.st_size, entry.st_mtime_ns] for path, entry in zip(files, status)]
    return remembered("digests", stamp, lambda: _digest(files))


def _digest(files: list[Path]) -> str:
    safe = all(path.suffix == ".safetensors" for path in files)
    return tensors_digest(*files) if safe else sha256_of(*files)
