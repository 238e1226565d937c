"""What adapters share about frames: which are valid, and features of a single encoder layer."""

from typing import TypeVar

import torch
from torch import Tensor

Count = TypeVar("Count", int, Tensor)  # of one clip, or [B] of the clips of a batch


def valid_frames(frames: Tensor, time: int) -> Tensor:
    """Mask [B, time], True at the first `frames` [B] positions."""
    return torch.arange(time, device=frames.device) < frames[:, None]


def require_one_layer(name: str, num_layers: int) -> None:
    """Raise ValueError unless the encoder gives one layer, which is all that the adapter `name` reads."""
    if num_layers != 1:
        raise ValueError(
            f"{name}: reads one encoder layer, the encoder gives {num_layers}; "
            "choose one in the encoder's block (layers: [-1] is the last)."
        )


def one_layer(name: str, features: Tensor) -> Tensor:
    """Features [B, T, D] of the only layer in [B, 1, T, D]; ValueError when there are more."""
    if features.shape[1] != 1:
        raise ValueError(f"{name}: features have {features.shape[1]} layers, this adapter reads one.")
    return features[:, 0]
