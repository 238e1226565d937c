"""What one of several processes keeps on its device: a copy of the model (ddp), or a shard of every tensor (fsdp)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.transformer_blocks import find_blocks

# Memory of NCCL's channels on a GPU: an allowance, since it depends on the number of GPUs and how they are connected.
NCCL_ALLOWANCE = 400 * 2**20


def require_supported(hparams: Mapping) -> None:
    """Raise ConfigError if there is no estimate for several processes with this `parallel`.

    Examples
    --------
    >>> require_supported({"processes": 2, "parallel": "fsdp"})
    >>> require_supported({"processes": 2, "parallel": "deepspeed"})
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: --processes supports parallel: ddp and fsdp, not deepspeed; fsdp is ...
    """
    if hparams["processes"] > 1 and hparams["parallel"] not in ("ddp", "fsdp"):
        raise ConfigError(
            f"--processes supports parallel: ddp and fsdp, not {hparams['parallel']}; fsdp is similar to ZeRO-3"
        )


def sharded_fraction(hparams: Mapping) -> float:
    """Fraction of (unquantised) weights, gradients and moments that stays on the device while it is not in use.

    Examples
    --------
    >>> sharded_fraction({"processes": 4, "parallel": "fsdp", "cpu_offload": False})
    0.25
    """
    if hparams.get("processes", 1) == 1 or hparams["parallel"] != "fsdp":
        return 1.0
    return 0.0 if hparams["cpu_offload"] else 1 / hparams["processes"]


def communication_buffers(model: AudioLanguageModel, hparams: Mapping, stored: Callable[[str, Tensor], float]) -> int:
    """Bytes of the buffers in which a process gathers weights and reduces gradients, at their maximum.

    With ddp the buckets, which are as large as all gradients. With fsdp the unsharded weights and gradients of the
    current block, of the next one, which is prefetched, and of all parameters outside blocks, which stay unsharded from
    the forward to the backward pass.

    Parameters
    ----------
    model : AudioLanguageModel
    hparams : mapping
        `processes`, `parallel`, `cpu_offload`.
    stored : callable
        Takes a parameter and its name; returns its bytes if it is sharded, otherwise 0.

    Examples
    --------
    >>> model = nn.Linear(10, 10)
    >>> communication_buffers(model, {"processes": 2, "parallel": "ddp"}, lambda name, parameter: parameter.nbytes)
    440
    """
    if hparams.get("processes", 1) == 1:
        return 0
    gradients = {name: p.nbytes for name, p in model.named_parameters() if p.requires_grad}
    if hparams["parallel"] == "ddp":
        return sum(gradients.values())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes = {name: stored(name, p) + gradients.get(name, 0) for name, p in model.named_parameters()}

    def size(block: nn.Module) -> float:
        return sum(sizes[names[id(parameter)]] for parameter in block.parameters())

    blocks = [size(block) for part in filter(None, (model.encoder, model.llm)) for block in find_blocks(part)]
    return round(sum(sizes.values()) - sum(blocks) + 2 * max(blocks, default=0))


@contextmanager
def shard_gradients(trained: list[nn.Parameter], fraction: float) -> Iterator[None]:
    """Within the context, backward passes replace each gradient by a new tensor with this fraction of its elements.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> with shard_gradients(list(layer.parameters()), 0.5):
    ...     layer(torch.ones(2)).sum().backward()
    >>> layer.weight.grad is None
    True
    """
    shards = []

    def shard(parameter: nn.Parameter) -> None:
        shards.append(torch.empty(round(parameter.numel() * fraction), dtype=parameter.dtype))
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(shard) for parameter in trained]
    try:
        yield
    finally:
        shards.clear()
        for hook in hooks:
            hook.remove()
