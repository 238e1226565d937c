"""Gated relative position bias of WavLM (Chen et al. 2021, arXiv 2110.13900), also used by BEATs."""

import math

import torch
from torch import Tensor, nn


def position_bias(embedding: nn.Embedding, time: int, max_distance: int) -> Tensor:
    """Bias [heads, T, T] of every query and key by their distance, before the gate.

    Parameters
    ----------
    embedding : nn.Embedding
        [buckets, heads]: half of the buckets per direction. Of these, one half has one distance per bucket and the
        other half has exponentially growing ranges of distances up to `max_distance`.
    time : int
        Frames T.
    max_distance : int
        This and all larger distances have the last bucket.

    Examples
    --------
    >>> embedding = nn.Embedding.from_pretrained(torch.arange(8.0)[:, None])  # the bias is the bucket
    >>> position_bias(embedding, time=3, max_distance=8)
    tensor([[[0., 5., 6.],
             [1., 0., 5.],
             [2., 1., 0.]]])
    """
    half = embedding.num_embeddings // 2
    exact = half // 2
    index = torch.arange(time, device=embedding.weight.device)
    offset = index[None] - index[:, None]  # key minus query
    distance = offset.abs()
    # float32 in this order of operations: other rounding would change the bucket at the edges.
    growing = torch.log(distance.float() / exact) / math.log(max_distance / exact) * (half - exact)
    growing = (exact + growing.clamp(min=0).to(torch.long)).clamp(max=half - 1)
    bucket = torch.where(distance < exact, distance, growing) + (offset > 0) * half
    return embedding(bucket).permute(2, 0, 1)


def gate(states: Tensor, linear: nn.Linear, scale: Tensor) -> Tensor:
    """Factor [B, heads, T, 1] by which each query multiplies its row of the bias.

    Parameters
    ----------
    states : Tensor
        Input of the gates [B, heads, T, D / heads].
    linear : nn.Linear
        D / heads -> 8: four numbers per gate.
    scale : Tensor
        Learned scale of the reset gate [1, heads, 1, 1].

    Examples
    --------
    >>> linear = nn.Linear(4, 8)
    >>> _ = linear.weight.data.zero_(), linear.bias.data.zero_()  # both gates are half open
    >>> gate(torch.randn(1, 2, 3, 4), linear, torch.ones(1, 2, 1, 1)).unique()
    tensor([1.7500], grad_fn=...)
    """
    update, reset = linear(states).unflatten(-1, (2, 4)).sum(-1, keepdim=True).sigmoid().unbind(-2)
    return update * (reset * scale - 1) + 2
