"""Fewer numbers from an encoder's output: windows of frames become one, layers become one. Any encoder may use these.

A pooling takes features [B, L, T, D], the valid frames of each clip [B] and the frames in a window, and gives features
[B, L, ceil(T / pool), D], zero after each clip's end, with their valid frames [B]. The last window of a clip takes the
frames that are left, so that the result does not depend on the padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_lite.config.errors import ConfigError


def mean_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Average every `pool` consecutive valid frames."""
    valid = _valid(features, frames)
    features = features.masked_fill(~valid[:, None, :, None], 0)
    if pool == 1:
        return features, frames
    sums = _windows(features, pool).sum(3)
    counts = _windows(valid[:, None, :, None], pool).sum(3).clamp(min=1)  # [B, 1, ceil(T / pool), 1]
    return sums / counts.to(sums.dtype), -(-frames // pool)


def max_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Take the largest value of each dimension among every `pool` consecutive valid frames."""
    lowest = torch.finfo(features.dtype).min
    features = features.masked_fill(~_valid(features, frames)[:, None, :, None], lowest)
    pooled, counts = _windows(features, pool, lowest).amax(3), -(-frames // pool)
    return pooled.masked_fill(~_valid(pooled, counts)[:, None, :, None], 0), counts


def stride_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Keep the first of every `pool` consecutive frames."""
    kept, counts = features[:, :, ::pool], -(-frames // pool)
    return kept.masked_fill(~_valid(kept, counts)[:, None, :, None], 0), counts


POOLINGS = {"mean": mean_pool, "max": max_pool, "stride": stride_pool}


def mixing_weights(layer_mix: str | list[float] | None, num_layers: int) -> list[float] | None:
    """Weights for `mix_layers` from an encoder's argument: "mean", a weight for each layer, or None for no mixing."""
    if layer_mix is None:
        return None
    if layer_mix == "mean":
        return [1 / num_layers] * num_layers
    if not isinstance(layer_mix, list) or len(layer_mix) != num_layers:
        raise ConfigError(
            f'encoder: layer_mix is {layer_mix!r}; give null, "mean" or {num_layers} weights, one a layer'
        )
    return [float(weight) for weight in layer_mix]


def mix_layers(features: Tensor, weights: list[float]) -> Tensor:
    """Weighted sum over layers: [B, L, T, D] and L weights -> [B, 1, T, D]."""
    return torch.einsum("bltd,l->btd", features, features.new_tensor(weights))[:, None]


def _valid(features: Tensor, frames: Tensor) -> Tensor:
    return torch.arange(features.shape[2], device=features.device) < frames[:, None]  # [B, T]


def _windows(x: Tensor, pool: int, fill: float = 0) -> Tensor:
    """[B, L, T, D] -> [B, L, ceil(T / pool), pool, D]."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % pool), value=fill).unflatten(2, (-1, pool))
