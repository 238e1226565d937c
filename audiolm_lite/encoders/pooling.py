"""Pooling of frames over time, and mixing of layers.

A pooling function maps features [B, L, T, D], valid frames [B] and the frames per window to features
[B, L, ceil(T / pool), D], zero after each clip's end, and their valid frames [B]. The last window of a clip has the
remaining valid frames only, so that the result does not depend on the padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.masks import valid_mask


def mean_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Average every `pool` consecutive valid frames.

    Examples
    --------
    >>> features = torch.tensor([1.0, 3.0, 5.0, 9.0])[None, None, :, None]  # one clip, three valid frames
    >>> pooled, frames = mean_pool(features, torch.tensor([3]), 2)
    >>> pooled.flatten(), frames
    (tensor([2., 5.]), tensor([2]))
    """
    valid = valid_mask(frames, features.shape[2])
    features = features.masked_fill(~valid[:, None, :, None], 0)
    if pool == 1:
        return features, frames
    sums = _windows(features, pool).sum(3)
    counts = _windows(valid[:, None, :, None], pool).sum(3).clamp(min=1)  # [B, 1, ceil(T / pool), 1]
    return sums / counts.to(sums.dtype), -(-frames // pool)


def max_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Take the maximum of each dimension over every `pool` consecutive valid frames.

    Examples
    --------
    >>> features = torch.tensor([1.0, 3.0, 5.0, 9.0])[None, None, :, None]  # one clip, three valid frames
    >>> pooled, frames = max_pool(features, torch.tensor([3]), 2)
    >>> pooled.flatten(), frames
    (tensor([3., 5.]), tensor([2]))
    """
    lowest = torch.finfo(features.dtype).min
    features = features.masked_fill(~valid_mask(frames, features.shape[2])[:, None, :, None], lowest)
    pooled, counts = _windows(features, pool, lowest).amax(3), -(-frames // pool)
    return pooled.masked_fill(~valid_mask(counts, pooled.shape[2])[:, None, :, None], 0), counts


def stride_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Keep the first of every `pool` consecutive frames.

    Examples
    --------
    >>> features = torch.tensor([1.0, 3.0, 5.0, 9.0])[None, None, :, None]  # one clip, three valid frames
    >>> pooled, frames = stride_pool(features, torch.tensor([3]), 2)
    >>> pooled.flatten(), frames
    (tensor([1., 5.]), tensor([2]))
    """
    kept, counts = features[:, :, ::pool], -(-frames // pool)
    return kept.masked_fill(~valid_mask(counts, kept.shape[2])[:, None, :, None], 0), counts


POOLINGS = {"mean": mean_pool, "max": max_pool, "stride": stride_pool}


def mixing_weights(layer_mix: str | list[float] | None, num_layers: int) -> list[float] | None:
    """Weights for `mix_layers` from an encoder's argument: "mean", one weight per layer, or None for no mixing.

    Raises
    ------
    ConfigError
        Another value, or another number of weights than layers.

    Examples
    --------
    >>> mixing_weights("mean", 4)
    [0.25, 0.25, 0.25, 0.25]
    """
    if layer_mix is None:
        return None
    if layer_mix == "mean":
        return [1 / num_layers] * num_layers
    if not isinstance(layer_mix, list) or len(layer_mix) != num_layers:
        raise ConfigError(
            f'encoder: layer_mix is {layer_mix!r}; it must be null, "mean" or {num_layers} weights, one per layer'
        )
    return [float(weight) for weight in layer_mix]


def mix_layers(features: Tensor, weights: list[float]) -> Tensor:
    """Weighted sum over layers: [B, L, T, D] and L weights -> [B, 1, T, D].

    Examples
    --------
    >>> features = torch.tensor([2.0, 6.0])[None, :, None, None]  # two layers
    >>> mix_layers(features, [0.25, 0.75])
    tensor([[[[5.]]]])
    """
    return torch.einsum("bltd,l->btd", features, features.new_tensor(weights))[:, None]


def _windows(x: Tensor, pool: int, fill: float = 0) -> Tensor:
    """Split [B, L, T, D] into windows [B, L, ceil(T / pool), pool, D]."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % pool), value=fill).unflatten(2, (-1, pool))
