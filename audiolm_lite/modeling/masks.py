"""Masks of padded batches."""

import torch
from torch import Tensor


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
