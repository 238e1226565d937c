"""What the encoders do alike: choosing layers, checking lengths, finding checkpoints, fingerprinting weights."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.pooling import POOLINGS, mix_layers, mixing_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LayerChoice:
    """Which blocks' outputs an encoder returns, and how their frames and layers become fewer.

    Parameters
    ----------
    where : str
        The encoder, for messages.
    blocks : int
        Blocks that the model has.
    layers : list of int, optional
        Blocks to return, 0 the first, -1 the last; all if None.
    pool : int
        Consecutive frames that become one.
    pooling : {"mean", "max", "stride"}
        How they do.
    layer_mix : "mean" or list of float, optional
        Return one layer: the average of `layers`, or their sum with these weights.

    Raises
    ------
    ConfigError
        No layer, one that is not there, frames pooled by less than 1, or an unknown way of pooling or mixing.
    """

    def __init__(
        self,
        where: str,
        blocks: int,
        layers: list[int] | None,
        pool: int,
        pooling: str,
        layer_mix: str | list[float] | None,
    ):
        if pool < 1:
            raise ConfigError(f"{where}: pool is {pool}; it must be at least 1")
        if pooling not in POOLINGS:
            raise ConfigError(f"{where}: pooling {pooling!r} is none of {', '.join(POOLINGS)}")
        if layers is not None and (not layers or any(not -blocks <= layer < blocks for layer in layers)):
            raise ConfigError(f"{where}: layers {layers}: the model has blocks 0 to {blocks - 1}")
        self.blocks = blocks
        self.indices = list(range(blocks)) if layers is None else [layer % blocks for layer in layers]
        self.pool, self.pooling, self.layer_mix = pool, pooling, layer_mix
        self.weights = mixing_weights(layer_mix, len(self.indices))
        self.num_layers = len(self.indices) if layer_mix is None else 1

    @property
    def depth(self) -> int:
        """Blocks that have to run."""
        return max(self.indices) + 1

    def num_frames(self, frames: Tensor | int) -> Tensor | int:
        """Frames of the result from those of the blocks."""
        return -(-frames // self.pool)

    def identity(self) -> dict[str, Any]:
        """The choice, for an encoder's identity."""
        return {
            "blocks": self.blocks,
            "layers": self.indices,
            "pool": self.pool,
            "pooling": self.pooling,
            "layer_mix": self.layer_mix,
        }

    def reduce(self, output: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a block's output [B, T, D] with valid frames [B] to float32 [B, 1, T', D] and [B]."""
        return POOLINGS[self.pooling](output[:, None].float(), frames, self.pool)

    def join(self, outputs: dict[int, Tensor]) -> Tensor:
        """Features [B, L, T, D] of pooled outputs by the index of their block."""
        features = torch.cat([outputs[index] for index in self.indices], dim=1)
        return features if self.weights is None else mix_layers(features, self.weights)


def cast_weights(where: str, model: nn.Module, dtype: str, quantization: str | None = None) -> None:
    """Give a model's weights another type, in which it then computes.

    Raises
    ------
    ConfigError
        The type is unknown, or the weights are quantised, which decides on their type.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"{where}: dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if quantization is None:
        model.to(DTYPES[dtype])
    elif dtype != "float32":
        raise ConfigError(f"{where}: dtype {dtype} and quantization {quantization} do not go together; leave one out")


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """[B, size], True before each clip's length [B]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def check_shortest(where: str, samples: Tensor | int, least: int) -> None:
    """Raise ValueError when a clip of `samples` (all of a tensor) is shorter than `least` samples."""
    shortest = int(samples.min()) if isinstance(samples, Tensor) else samples
    if shortest < least:
        raise ValueError(
            f"clip of {shortest} samples is shorter than the {least} ({1000 * least / SAMPLE_RATE:g} ms) that the "
            f"{where} encoder needs; drop it from the manifest"
        )


def weights_digest(module: nn.Module) -> str:
    """16 hexadecimal digits that change with any name, type or value of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def read_checkpoint(where: str, source: str, pattern: str) -> tuple[Path, dict[str, Any]]:
    """Find and read a PyTorch checkpoint; tensors and plain containers only, so nothing in it is executed.

    Parameters
    ----------
    where : str
        The encoder, for messages.
    source : str
        The file; or a folder or a repository of the Hugging Face hub with one file that fits `pattern`.
    pattern : str
        Glob pattern of the file's name.

    Returns
    -------
    tuple of Path and dict
        The file and what it holds.

    Raises
    ------
    ConfigError
        Not exactly one such file, or one that cannot be read in this way.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        folder = path if path.is_dir() else _download(where, source, pattern)
        files = sorted(folder.glob(pattern))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ConfigError(f"{where}: {source} should hold one file {pattern}, it holds {names}; name the file")
        path = files[0]
    try:
        return path, torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{where}: {path} is no sound checkpoint of tensors ({error}); fetch it again") from error


def _download(where: str, source: str, pattern: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=[pattern]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{where}: {source} is no file, no folder and no repository that could be fetched: {error}"
        ) from error
