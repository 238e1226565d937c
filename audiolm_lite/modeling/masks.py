"""Masks of padded batches."""

from typing import TypeVar

import torch
from torch import Tensor

Count = TypeVar("Count", int, Tensor)  # samples, frames or tokens of one clip, or [B] of the clips of a batch


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask of the positions before the end of each padded item.

    Parameters
    ----------
    lengths : Tensor
        Valid positions of each item [B], int64.
    size : int
        Positions S of the padded batch.

    Returns
    -------
    Tensor
        [B, S] bool on the device of `lengths`, True at valid positions.

    Examples
    --------
    >>> valid_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]
