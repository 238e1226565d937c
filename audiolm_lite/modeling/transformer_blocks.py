"""The repeated blocks of an LLM or encoder, which are the units of recomputation, compilation and sharding."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from audiolm_lite.config.errors import ConfigError


def blocks(module: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer, first to last: the list of modules with the most parameters; empty where there is none.

    A list inside a block (experts, say) has fewer than the one around it.
    """
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=[]))


def checkpoint_blocks(module: nn.Module, every: int) -> None:
    """Keep no activations inside every n-th block; the backward pass computes them again (Chen et al. 2016).

    Gradients are the same to the last bit, dropout included, and pass through `inputs_embeds` of a frozen LLM, whose
    blocks transformers' own switch would leave out because they are in eval mode.
    """
    for block in blocks(module)[::every]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Compile each block on its own: they share one graph, which is ready in a fraction of the whole model's time.

    Before `checkpoint_blocks`, so that what is compiled is computed again, not left out of the compilation.
    """
    for block in blocks(module):
        block.forward = torch.compile(block.forward, dynamic=True)  # batches differ in size and length


def use_attention(llm: nn.Module, name: str) -> None:
    """Let an LLM of transformers compute attention by another implementation, e.g. "flash_attention_2".

    Raises
    ------
    ConfigError
        What it needs is not installed, or the LLM does not have it.
    """
    llm = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    try:
        llm.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        hint = ": pip install flash-attn, on an NVIDIA GPU" if name.startswith("flash") else ""
        raise ConfigError(f"attention {name} does not work here{hint}. {error}") from error
