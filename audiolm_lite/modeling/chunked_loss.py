"""Losses on an LLM's logits, a few positions at a time: logits of all positions never exist together.

The gradient with respect to the hidden states is computed together with the loss, chunk by chunk, and kept in their
place (as in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989): one pass through the output layer each way, and memory of
one chunk's logits, 128k x 4 bytes a position for the large vocabularies.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Logits of a chunk where no size is given: 256 MB in float32, and enough positions to keep a GPU busy.
CHUNK_LOGITS = 2**26


def chunk_positions(vocabulary: int, chunk: int = 0) -> int:
    """Positions in one chunk: `chunk` where it is given, else what keeps a chunk within `CHUNK_LOGITS` logits."""
    return chunk or max(1, CHUNK_LOGITS // vocabulary)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (nats) of logits [K, V] and how many of the targets [K] rank first."""
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

    Parameters
    ----------
    function : callable
        (logits [k, V], k rows of each of the targets) -> (sum over them, differentiable; a count without gradient).
    head : nn.Module
        The output layer, whatever it is made of; its trainable parameters get their gradients, too.
    hidden : Tensor
        Inputs of the head [K, H].
    targets : sequence of Tensor
        [K, ...] each.
    chunk : int
        Positions k of a chunk.

    Returns
    -------
    tuple of Tensor
        The two sums; the first can be differentiated once.
    """
    if len(hidden) <= chunk:  # also where there is no position at all
        return function(head(hidden), *targets)
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or parameters):
        return _ChunkedLoss.apply(function, head, chunk, tuple(targets), hidden, *parameters)
    parts = [function(head(part), *rest) for part, *rest in _chunks(chunk, hidden, *targets)]
    return sum(loss for loss, _ in parts), sum(count for _, count in parts)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function, head, chunk, targets, hidden, *parameters) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        total, count = 0.0, 0
        for place, part, *rest in _chunks(chunk, gradient, hidden, *targets):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss, counted = function(head(part), *rest)
            found, *others = torch.autograd.grad(loss, [part, *parameters])
            place.copy_(found)
            for summed, new in zip(gradients, others):
                summed += new
            total, count = total + loss.detach(), count + counted
        ctx.save_for_backward(gradient, *gradients)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple:
        return None, None, None, None, *(gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors)


def _chunks(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(chunk) for tensor in tensors))
