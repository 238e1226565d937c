"""Transformer blocks of an LLM or encoder: the units of activation checkpointing, compilation and sharding."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer, first to last: the `nn.ModuleList` with the most parameters; empty if there is none.

    A list inside a block, for example of experts, has fewer parameters than the list of blocks.

    Examples
    --------
    >>> transformer = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 2)]))
    >>> find_blocks(transformer)
    [Linear(in_features=2, out_features=8, bias=True), Linear(in_features=8, out_features=2, bias=True)]
    """
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=[]))


def checkpoint_activations(module: nn.Module, every: int) -> None:
    """Keep no activations inside every n-th block and recompute them in the backward pass (Chen et al. 2016).

    The gradients are identical to the last bit, also with dropout. They reach `inputs_embeds` of a frozen LLM:
    transformers' own option skips blocks in eval mode.

    Examples
    --------
    >>> blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    >>> checkpoint_activations(nn.Sequential(blocks), every=2)
    >>> [isinstance(block.forward, partial) for block in blocks]
    [True, False, True]
    """
    for block in find_blocks(module)[::every]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Compile each block separately: all blocks use one graph, which compiles much faster than the complete model.

    Call this before `checkpoint_activations`, so that the compiled block is what is recomputed.
    """
    for block in find_blocks(module):
        block.forward = torch.compile(block.forward, dynamic=True)  # batches differ in size and length
