"""What one of several processes holds on its device: all of the model (ddp), or a share of every tensor (fsdp)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.transformer_blocks import find_blocks

# What NCCL's channels take on a GPU: an allowance, since it depends on the number of GPUs and how they are connected.
NCCL_ALLOWANCE = 400 * 2**20


def require_known(hparams: Mapping) -> None:
    """Raise ConfigError where what a process holds cannot be told."""
    if hparams["processes"] > 1 and hparams["parallel"] not in ("ddp", "fsdp"):
        raise ConfigError(
            f"--processes knows parallel ddp and fsdp, not {hparams['parallel']}; ZeRO-3 is much like fsdp"
        )


def share_of(hparams: Mapping) -> float:
    """Share of weights (not quantised), gradients and moments that stays on the device between its uses."""
    if hparams.get("processes", 1) == 1 or hparams["parallel"] != "fsdp":
        return 1.0
    return 0.0 if hparams["cpu_offload"] else 1 / hparams["processes"]


def exchanged_bytes(model: AudioLanguageModel, hparams: Mapping, stored: Callable[[str, Tensor], float]) -> int:
    """Bytes of what processes gather from each other or reduce, at the worst moment.

    With ddp the buckets, as large as all gradients. With fsdp the whole of the block at work and of the next one, which
    is fetched meanwhile, and of all that is in no block, which stays whole from the forward to the backward pass; of
    each the weights and the gradients.

    Parameters
    ----------
    model : AudioLanguageModel
    hparams : mapping
        `processes`, `parallel`, `cpu_offload`.
    stored : callable
        Bytes of a parameter, by name, that are shared out; 0 for one that stays whole.
    """
    if hparams.get("processes", 1) == 1:
        return 0
    trained = {name: p.nbytes for name, p in model.named_parameters() if p.requires_grad}
    if hparams["parallel"] == "ddp":
        return sum(trained.values())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes = {name: stored(name, p) + trained.get(name, 0) for name, p in model.named_parameters()}

    def size(block: nn.Module) -> float:
        return sum(sizes[names[id(parameter)]] for parameter in block.parameters())

    each = [size(block) for part in filter(None, (model.encoder, model.llm)) for block in find_blocks(part)]
    return round(sum(sizes.values()) - sum(each) + 2 * max(each, default=0))


@contextmanager
def shared_gradients(trained: list[nn.Parameter], share: float) -> Iterator[None]:
    """Within it, backward passes leave of each gradient the share that a process keeps, in a tensor of its own."""
    kept = []

    def keep(parameter: nn.Parameter) -> None:
        kept.append(torch.empty(round(parameter.numel() * share), dtype=parameter.dtype))
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(keep) for parameter in trained]
    try:
        yield
    finally:
        kept.clear()
        for hook in hooks:
            hook.remove()
