"""Reading of published files without executing code in them."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.backbones.untrusted import read_json
from audiolm_lite.config.errors import ConfigError, describe

PEFT_CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_CONTAINERS = ("state_dict", "model", "module")  # entries in which trainers store the state dict


@dataclass
class Published:
    """Tensors and configuration of a published checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By published name, without the prefixes that data parallelism and compilation add.
    config : dict
        The checkpoint's own configuration; empty if it has none.
    peft : dict
        Content of a PEFT folder's `adapter_config.json`; empty if there is none.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] = field(default_factory=dict)


def read_published(path: Path, patterns: Sequence[str], lora_prefix: str | None = None) -> Published:
    """Read a file, or all files of a folder that belong to a format.

    Parameters
    ----------
    path : path
        File or folder.
    patterns : sequence of str
        Glob patterns of the format's files in a folder.
    lora_prefix : str, optional
        Also read a LoRA that is stored as a PEFT folder, `path` itself or a folder in it, and put this before the names
        of its tensors. None: the format has no such LoRA.

    Raises
    ------
    ConversionError
        There is nothing to read, a file is neither safetensors nor a pickle of plain tensors, or a tensor's name occurs
        twice.

    Examples
    --------
    >>> from safetensors.torch import save_file
    >>> folder = getfixture("tmp_path")
    >>> save_file({"projection.bias": torch.zeros(4)}, folder / "model.safetensors")
    >>> _ = (folder / "config.json").write_text('{"stride": 5}')
    >>> read_published(folder, ["*.safetensors"])
    Published(tensors={'projection.bias': tensor([0., 0., 0., 0.])}, config={'stride': 5}, peft={})
    """
    result = Published()
    for file in _files(path, patterns):
        _add(result, file, "")
    if lora_prefix is not None and path.is_dir():
        folders = [folder for folder in (path, *sorted(path.iterdir())) if (folder / PEFT_CONFIG).is_file()]
        for file in [folder / name for folder in folders for name in PEFT_FILES if (folder / name).is_file()]:
            _add(result, file, lora_prefix)
    folder = path if path.is_dir() else path.parent
    if (folder / "config.json").is_file():
        result.config = _read_json(folder / "config.json") | result.config
    return result


def _add(result: Published, file: Path, prefix: str) -> None:
    tensors, config = read_file(file)
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if repeated := result.tensors.keys() & named.keys():
        raise ConversionError(f"{file}: {min(repeated)} is also in another file; give one file instead of the folder")
    result.tensors |= named
    result.config |= config
    if file.name in PEFT_FILES and (file.parent / PEFT_CONFIG).is_file():
        result.peft = _read_json(file.parent / PEFT_CONFIG)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def _files(path: Path, patterns: Sequence[str]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConversionError("no such file or folder")
    found = (file for pattern in patterns for file in sorted(path.glob(pattern)))
    files = [file for file in dict.fromkeys(found) if file.is_file()]
    if not files:
        raise ConversionError(f"the folder contains none of {', '.join(patterns)}; give the path of the file")
    return files


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file, or a pickle of plain tensors and values.

    Returns
    -------
    tensors : dict of str to Tensor
    config : dict
        The configuration that is stored with the tensors; empty if there is none.

    Raises
    ------
    ConversionError
        The file is damaged, contains no tensors, or needs code to be unpickled.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "model.pt"
    >>> torch.save({"model": {"module.projection.bias": torch.zeros(4)}, "config": {"stride": 5}}, path)
    >>> read_file(path)
    ({'projection.bias': tensor([0., 0., 0., 0.])}, {'stride': 5})
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except Exception as error:  # safetensors raises its own SafetensorError, a bare Exception
            raise ConversionError(f"{path}: damaged ({error}); download it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's restricted reader met something else than tensors and values
        raise ConversionError(
            f"{path}: contains more than tensors and plain values, and reading it would run its code. If you trust the "
            "source, load it in the environment that wrote it, and save its state dict with safetensors."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"{path}: damaged ({describe(error)}); download it again") from error
    config: dict[str, Any] = {}
    while isinstance(content, Mapping) and not _is_state(content):
        config = dict(content.get("config") or content.get("hyper_parameters") or config)
        inner = next((content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            raise ConversionError(f"{path}: contains no tensors, but {', '.join(map(str, list(content)[:5]))}")
        content = inner
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: contains a {type(content).__name__}, not tensors by name; save its state dict")
    return _unwrapped(path, content), config


def _is_state(content: Mapping) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _unwrapped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parallel = all(name.startswith("module.") for name in tensors)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = (name.removeprefix("module.") if parallel else name).replace("_orig_mod.", "")
        if new in result:
            raise ConversionError(f"{path}: {name} and another tensor are both called {new} without their prefixes")
        result[new] = tensor
    return result
