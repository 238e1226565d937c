"""Pooling of encoder features over time."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_pool(features: Tensor, frames: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Average every `pool` consecutive valid frames.

    The last window of a clip averages the frames that are left (ceil), so the result does not depend on the padding.

    Parameters
    ----------
    features : Tensor
        [B, L, T, D], floating point.
    frames : Tensor
        Valid frames of each clip [B], int64.
    pool : int
        Frames in one window.

    Returns
    -------
    tuple of Tensor
        Pooled features [B, L, ceil(T / pool), D], zero after each clip's end, and their valid frames [B].
    """
    time = features.shape[2]
    valid = torch.arange(time, device=features.device) < frames[:, None]  # [B, T]
    features = features.masked_fill(~valid[:, None, :, None], 0)
    if pool == 1:
        return features, frames
    missing = -time % pool
    sums = F.pad(features, (0, 0, 0, missing)).unflatten(2, (-1, pool)).sum(3)
    counts = F.pad(valid, (0, missing)).unflatten(1, (-1, pool)).sum(2).clamp(min=1)  # [B, ceil(T / pool)]
    return sums / counts[:, None, :, None].to(sums.dtype), -(-frames // pool)
