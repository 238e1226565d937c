"""Reading published files without executing anything in them."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from audiolm_lite.convert.accounting import ConversionError

PEFT_CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_CONTAINERS = ("state_dict", "model", "module")  # what trainers wrap a state dict in


@dataclass
class Published:
    """Tensors of a published checkpoint and what was said beside them.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By published name, without what data parallelism and compilation put in front.
    config : dict
        The checkpoint's own configuration where it has one, else empty.
    peft : dict
        Content of a PEFT folder's `adapter_config.json`, else empty.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] = field(default_factory=dict)


def read_published(path: Path, names: Sequence[str], beside: str | None = None) -> Published:
    """Read a file, or all files of a folder that a format consists of.

    Parameters
    ----------
    path : path
    names : sequence of str
        Patterns of the format's files in a folder.
    beside : str, optional
        The format may have its LoRA as a PEFT folder in or below a folder; this goes before its tensors' names.

    Raises
    ------
    ConversionError
        Nothing to read, a file that is no safetensors and cannot be read as plain tensors, or a name that occurs twice.
    """
    result = Published()
    for file in _files(path, names):
        _add(result, file, "")
    if beside is not None and path.is_dir():
        folders = [folder for folder in (path, *sorted(path.iterdir())) if (folder / PEFT_CONFIG).is_file()]
        for file in [folder / name for folder in folders for name in PEFT_FILES if (folder / name).is_file()]:
            _add(result, file, beside)
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file():
        result.config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | result.config
    return result


def _add(result: Published, file: Path, prefix: str) -> None:
    tensors, config = read_file(file)
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if both := result.tensors.keys() & named.keys():
        raise ConversionError(f"{file}: {sorted(both)[0]} is in another file as well; name the file that counts")
    result.tensors |= named
    result.config |= config
    if file.name in PEFT_FILES and (file.parent / PEFT_CONFIG).is_file():
        result.peft = json.loads((file.parent / PEFT_CONFIG).read_text(encoding="utf-8"))


def _files(path: Path, names: Sequence[str]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConversionError("no such file or folder")
    found = list(dict.fromkeys(file for name in names for file in sorted(path.glob(name))))
    if not found:
        raise ConversionError(f"the folder holds none of {', '.join(names)}; name the checkpoint's file itself")
    return found


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file by name, and the configuration stored with them where there is one."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except Exception as error:  # safetensors raises its own SafetensorError, a bare Exception
            raise ConversionError(f"{path}: damaged ({error}); fetch it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: holds more than tensors and plain values, and reading that would run its code. Where the file "
            "comes from a source you trust, save its state dict with safetensors in the environment that made it."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{path}: damaged ({error}); fetch it again") from error
    config: dict[str, Any] = {}
    while isinstance(content, Mapping) and not _is_state(content):
        config = dict(content.get("config") or content.get("hyper_parameters") or config)
        inner = next((content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise ConversionError(f"{path}: holds no tensors, but {', '.join(map(str, list(content)[:5]))}")
        content = inner
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__} in place of named tensors")
    return _unwrapped(path, content), config


def _is_state(content: Mapping) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _unwrapped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parallel = all(name.startswith("module.") for name in tensors)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = (name.removeprefix("module.") if parallel else name).replace("_orig_mod.", "")
        if new in result:
            raise ConversionError(f"{path}: {name} and another tensor are both called {new} without their wrapper")
        result[new] = tensor
    return result
