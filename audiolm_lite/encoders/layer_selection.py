"""Choice of an encoder's layers, and how their frames and layers are combined."""

from typing import Any

import torch
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.pooling import POOLINGS, mix_layers, mixing_weights
from audiolm_lite.modeling.masks import Count


class LayerSelection:
    """Blocks whose outputs an encoder returns, pooled over time and optionally mixed into one layer.

    Parameters
    ----------
    where : str
        Type of the encoder, for messages.
    blocks : int
        Number of blocks of the model.
    layers : list of int, optional
        Blocks to return, 0 the first, -1 the last; all if None.
    pool : int
        Consecutive frames that are combined into one.
    pooling : {"mean", "max", "stride"}
        How frames are combined.
    layer_mix : "mean" or list of float, optional
        Return one layer: the average of `layers`, or their sum with these weights.

    Attributes
    ----------
    indices : list of int
        Returned blocks, counted from 0.
    num_layers : int
        Layers L of the result.

    Raises
    ------
    ConfigError
        `layers` is empty or has a block that the model does not have, `pool` is less than 1, or `pooling` or
        `layer_mix` has an unknown value.

    Examples
    --------
    >>> selection = LayerSelection("whisper", blocks=4, layers=[0, -2], pool=2, pooling="mean", layer_mix=None)
    >>> selection.indices, selection.depth, selection.num_frames(5)
    ([0, 2], 3, 3)
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
            raise ConfigError(f"{where}: pooling is {pooling!r}, it must be one of {', '.join(POOLINGS)}")
        if layers is not None and (not layers or any(not -blocks <= layer < blocks for layer in layers)):
            raise ConfigError(f"{where}: layers is {layers}; the model has blocks 0 to {blocks - 1}")
        self.blocks = blocks
        self.indices = list(range(blocks)) if layers is None else [layer % blocks for layer in layers]
        self.pool, self.pooling, self.layer_mix = pool, pooling, layer_mix
        self.weights = mixing_weights(layer_mix, len(self.indices))
        self.num_layers = len(self.indices) if layer_mix is None else 1

    @property
    def depth(self) -> int:
        """Number of blocks to run."""
        return max(self.indices) + 1

    def num_frames(self, frames: Count) -> Count:
        """Frames of the result from frames of the blocks."""
        return -(-frames // self.pool)

    def identity(self) -> dict[str, Any]:
        """Settings that change features, for an encoder's `identity`."""
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
        """Features [B, L, T, D] from pooled outputs [B, 1, T, D] by the index of their block."""
        features = torch.cat([outputs[index] for index in self.indices], dim=1)
        return features if self.weights is None else mix_layers(features, self.weights)
