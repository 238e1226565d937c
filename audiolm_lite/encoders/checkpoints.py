"""Weights of encoders: reading published checkpoints, their dtype, and a hash of them."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolm_lite.config.errors import ConfigError, describe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cast_weights(where: str, model: nn.Module, dtype: str, quantization: str | None = None) -> None:
    """Convert a model's weights, in place, to the dtype in which it computes.

    Parameters
    ----------
    where : str
        Type of the encoder, for messages.
    model : nn.Module
    dtype : {"float32", "bfloat16", "float16"}
    quantization : str, optional
        Quantization that the model was loaded with; its weights stay as they are.

    Raises
    ------
    ConfigError
        Unknown dtype, or both a dtype and a quantization.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> cast_weights("ssl", model, "bfloat16")
    >>> model.weight.dtype
    torch.bfloat16
    """
    if dtype not in DTYPES:
        raise ConfigError(f"{where}: dtype is {dtype!r}, it must be one of {', '.join(DTYPES)}")
    if quantization is None:
        model.to(DTYPES[dtype])
    elif dtype != "float32":
        raise ConfigError(f"{where}: dtype {dtype} and quantization {quantization} exclude each other; remove one")


def weights_digest(module: nn.Module) -> str:
    """16 hexadecimal digits of a hash over the names, dtypes, shapes and values of a module's tensors.

    Examples
    --------
    >>> norm = nn.LayerNorm(4)
    >>> before = weights_digest(norm)
    >>> before, weights_digest(nn.LayerNorm(4)) == before, weights_digest(norm.half()) == before
    ('b0414fd1040e01c5', True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def read_checkpoint(where: str, source: str, pattern: str) -> tuple[Path, dict[str, Any]]:
    """Find and read a PyTorch checkpoint of tensors and plain containers with PyTorch's restricted reader.

    Nothing in it is executed. A model folder has no such file: `hub.contents` refuses it.

    Parameters
    ----------
    where : str
        Type of the encoder, for messages.
    source : str
        The file, or a folder or a repository of the Hugging Face hub with one file that matches `pattern`.
    pattern : str
        Glob pattern of the file name.

    Returns
    -------
    tuple of Path and dict
        The file and its content.

    Raises
    ------
    ConfigError
        No such file or several, or a file that cannot be read this way.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> torch.save({"cfg": {"layers": 2}}, folder / "BEATs.pt")
    >>> path, content = read_checkpoint("beats", str(folder), "*.pt")
    >>> path.name, content
    ('BEATs.pt', {'cfg': {'layers': 2}})
    """
    path = Path(source).expanduser()
    if not path.is_file():
        folder = path if path.is_dir() else _download(where, source, pattern)
        files = sorted(folder.glob(pattern))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ConfigError(f"{where}: {source} must contain one file {pattern}, it contains {names}; name the file")
        path = files[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(
            f"{where}: {path} is not a valid checkpoint of tensors ({describe(error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: {path} contains a {type(content).__name__}, not tensors by name; name another file"
        )
    return path, content


def _download(where: str, source: str, pattern: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=[pattern]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{where}: {source} is not a file or folder, and no repository of that name can be downloaded: {error}"
        ) from error
