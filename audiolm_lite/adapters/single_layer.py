"""Checks of adapters that read the features of a single encoder layer."""

from torch import Tensor


def require_single_layer(adapter: str, num_layers: int) -> None:
    """Raise ValueError unless `num_layers`, the number of layers of the encoder's features, is 1.

    Examples
    --------
    >>> require_single_layer("linear", 24)
    Traceback (most recent call last):
    ValueError: linear: reads one encoder layer, the encoder returns 24; choose one in the encoder's block ...
    """
    if num_layers != 1:
        raise ValueError(
            f"{adapter}: reads one encoder layer, the encoder returns {num_layers}; "
            "choose one in the encoder's block (layers: [-1] is the last)."
        )


def single_layer(adapter: str, features: Tensor) -> Tensor:
    """Features [B, T, D] of the only layer in [B, 1, T, D]; ValueError if there are several layers.

    Examples
    --------
    >>> import torch
    >>> single_layer("linear", torch.zeros(2, 1, 50, 8)).shape
    torch.Size([2, 50, 8])
    """
    if features.shape[1] != 1:
        raise ValueError(f"{adapter}: features have {features.shape[1]} layers, this adapter reads one.")
    return features[:, 0]
