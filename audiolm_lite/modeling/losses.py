"""Losses on an LLM's logits that never hold the logits of all positions in memory at the same time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import LOSS_KERNELS

# Logits of one chunk where no size is given: 256 MB in float32, and enough positions to keep a GPU busy.
CHUNK_LOGITS = 2**26
# Factor of a chunk's loss where the logits are float16. Gradients below 6e-8 would become 0, before the loss scale of
# training could help: it is applied in the backward pass, and these gradients are computed in the forward pass.
HALF_SCALE = 2.0**12


def chunk_positions(vocabulary: int, chunk: int = 0) -> int:
    """Positions per chunk: `chunk`, or for 0 as many as have `CHUNK_LOGITS` logits.

    Examples
    --------
    >>> chunk_positions(vocabulary=131072)
    512
    >>> chunk_positions(vocabulary=131072, chunk=64)
    64
    """
    return chunk or max(1, CHUNK_LOGITS // vocabulary)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of logits [K, V], and the number of targets [K] with the highest logit.

    Examples
    --------
    >>> loss, correct = cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([1, 1]))
    >>> loss, correct  # log(2) + 0
    (tensor(0.6931), tensor(1))
    """
    logits = logits.float()
    total = F.cross_entropy(logits, targets, reduction="sum")
    return total, (logits.argmax(dim=-1) == targets).sum()


def chunked_loss(
    function: Callable[..., tuple[Tensor, Tensor]],
    head: nn.Module,
    hidden: Tensor,
    targets: Sequence[Tensor],
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Sum `function(head(hidden), *targets)` over chunks of positions.

    The gradient with respect to the hidden states is computed together with the loss and stored until the backward
    pass (as in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989). The output layer is therefore applied once forward
    and once backward, and memory holds the logits of one chunk. Gradients of float16 logits are computed from a scaled
    loss and stored in float32, so that the loss scale of training acts on them as on others.

    Parameters
    ----------
    function : callable
        (logits [k, V], k rows of each target) -> (sum over the rows, differentiable; a count without gradient).
    head : nn.Module
        Output layer of any kind; its trainable parameters get their gradients too.
    hidden : Tensor
        Inputs of the head [K, H].
    targets : sequence of Tensor
        [K, ...] each.
    chunk : int
        Positions k per chunk.

    Returns
    -------
    tuple of Tensor
        The two sums. The first can be differentiated once.

    Examples
    --------
    >>> head, hidden, targets = nn.Linear(4, 8), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 5])
    >>> loss, _ = chunked_loss(cross_entropy, head, hidden, [targets], chunk=2)
    >>> torch.testing.assert_close(loss, cross_entropy(head(hidden), targets)[0])
    >>> loss.backward()
    >>> head.weight.grad.shape
    torch.Size([8, 4])
    """
    if len(hidden) <= chunk:  # includes the case without any position
        return function(head(hidden), *targets)
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or parameters):
        return _ChunkedLoss.apply(function, head, chunk, tuple(targets), hidden, *parameters)
    results = [function(head(states), *rest) for states, *rest in _chunks(chunk, hidden, *targets)]
    losses, counts = zip(*results)
    return sum(losses[1:], losses[0]), sum(counts[1:], counts[0])


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., tuple[Tensor, Tensor]],
        head: nn.Module,
        chunk: int,
        targets: tuple[Tensor, ...],
        hidden: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor | float, Tensor | int]:
        gradient = torch.empty_like(hidden, dtype=_gradient_dtype(hidden))
        gradients = [torch.zeros_like(parameter, dtype=_gradient_dtype(parameter)) for parameter in parameters]
        total: Tensor | float = 0.0
        count: Tensor | int = 0
        scale = HALF_SCALE
        for gradient_slice, states, *rest in _chunks(chunk, gradient, hidden, *targets):
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                logits = head(states)
                loss, counted = function(logits, *rest)
            inputs = [states, *parameters]
            new_gradients: Sequence[Tensor]
            if logits.dtype == torch.float16:
                new_gradients, scale = _scaled_gradients(loss, inputs, scale)
            else:
                new_gradients = torch.autograd.grad(loss, inputs)
            gradient_slice.copy_(new_gradients[0])
            for summed, new in zip(gradients, new_gradients[1:]):
                summed += new
            total, count = total + loss.detach(), count + counted
            del logits, loss  # otherwise the memory holds two chunks
        ctx.save_for_backward(gradient, *gradients)
        ctx.dtypes = [hidden.dtype, *(parameter.dtype for parameter in parameters)]
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple:
        scaled = (gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return None, None, None, None, *(gradient.to(dtype) for gradient, dtype in zip(scaled, ctx.dtypes))


def _gradient_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def _scaled_gradients(loss: Tensor, inputs: Sequence[Tensor], scale: float) -> tuple[list[Tensor], float]:
    """Gradients in float32 of a loss with float16 logits, and the factor at which they were finite.

    The factor is halved until they are, or until it is 1.
    """
    while True:
        gradients = torch.autograd.grad(loss, inputs, torch.full_like(loss, scale), retain_graph=scale > 1)
        if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in gradients):
            return [gradient.float() / scale for gradient in gradients], scale
        scale /= 2


def _chunks(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(chunk) for tensor in tensors))


def check_loss_kernel(name: str, head: nn.Module) -> None:
    """Check that a `loss_kernel` can compute the loss of an LLM with this output layer.

    Raises
    ------
    ConfigError
        Unknown name, torch without the kernel, or an output layer that is more than one matrix.

    Examples
    --------
    >>> check_loss_kernel("chunked", nn.Linear(4, 8))
    >>> check_loss_kernel("liger", nn.Linear(4, 8))
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: loss_kernel is 'liger', it must be one of chunked, torch
    """
    if name not in LOSS_KERNELS:
        raise ConfigError(f"loss_kernel is {name!r}, it must be one of {', '.join(LOSS_KERNELS)}")
    if name == "chunked":
        return
    if type(head) is not nn.Linear or head.bias is not None:
        raise ConfigError(f"loss_kernel {name} takes an output layer that is one matrix: use chunked with a LoRA on it")
    if not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(f"loss_kernel {name} needs torch 2.13, and this is {torch.__version__}: use chunked")


def torch_cross_entropy(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats by torch's fused kernel, which returns no ranks: for training steps only.

    Parameters
    ----------
    head : nn.Linear
        Output layer [V, H] without bias.
    hidden : Tensor
        [K, H] with K > 0, computed in the dtype of autocast where it is enabled, else in that of the weight.
    targets : Tensor
        [K] int64.

    Returns
    -------
    Tensor
        float32 scalar.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    options = torch.nn.LinearCrossEntropyOptions()  # gradients in chunks, as in `chunked_loss`
    with torch.autocast(device, enabled=False):
        total = F.linear_cross_entropy(
            hidden.to(dtype), head.weight.to(dtype), targets, reduction="sum", options=options
        )
    return total.float()
