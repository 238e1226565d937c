"""One optimiser step's gradients: the exact mean over a window's tokens, clipped as one, refused when not finite."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audiolm_lite.config.errors import UserError
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training.engines import sharding

logger = logging.getLogger(__name__)


class NonFiniteError(UserError, RuntimeError):
    """More optimiser steps of an epoch than `nonfinite_patience` had a non-finite loss or gradient."""


@dataclass
class Progress:
    """Position of a run; together with the random number state it decides every later step.

    Attributes
    ----------
    epoch : int
        Current epoch, from 1.
    window : int
        Optimiser steps taken (or skipped) in this epoch.
    step : int
        Optimiser steps taken (or skipped) in all.
    skipped : int
        Steps skipped in this epoch because something was not finite.
    loss_sum, tokens : float
        Over this epoch's answer tokens, for its mean loss.
    best : float or None
        Least cost (see `CheckpointFolder.cost`) of a validation so far.
    stale : int
        Validations since that one.
    """

    epoch: int = 1
    window: int = 0
    step: int = 0
    skipped: int = 0
    loss_sum: float = 0.0
    tokens: float = 0.0
    best: float | None = None
    stale: int = 0

    def next_epoch(self, cost: float | None) -> "Progress":
        """The position after an epoch with a validation of this cost; None: it is not ranked."""
        best, stale = self.best, self.stale
        if cost is not None:
            best, stale = (cost, 0) if best is None or cost < best else (best, stale + 1)
        return Progress(epoch=self.epoch + 1, step=self.step, best=best, stale=stale)


def amounts(window: Sequence[Batch]) -> list[float]:
    """Items, seconds of audio, tokens, and places with padding of a window's batches but those that fill it up."""
    own = [batch for batch in window if batch.ids]
    return [
        sum(len(batch.ids) for batch in own),
        sum(batch.seconds for batch in own),
        sum(int(batch.attention_mask.sum()) for batch in own),
        sum(batch.attention_mask.numel() for batch in own),
    ]


def average_and_clip(groups: Sequence[Sequence[Tensor]], tokens: Tensor, max_norm: float) -> Tensor:
    """Turn summed gradients into those of the mean over `tokens`, and clip their norm over all groups and shares.

    Engines average gradients over the processes, each of which has summed over its own tokens; `tokens` are those of
    all of them.

    Parameters
    ----------
    groups : sequence of sequence of Tensor
        Parameters of each group.
    tokens : Tensor
        Scalar.
    max_norm : float
        Of all groups together.

    Returns
    -------
    Tensor
        Norms [1 + groups] float32 before clipping, of all and of each group, the same in every process.
    """
    groups = [[parameter for parameter in group if parameter.grad is not None] for group in groups]
    parameters = [parameter for group in groups for parameter in group]
    for parameter in parameters:
        parameter.grad.div_((tokens / processes.world_size()).to(parameter.grad.device))
    norms = [nn.utils.get_total_norm([parameter.grad for parameter in group]) for group in groups]
    norms.insert(0, nn.utils.clip_grad_norm_(parameters, max_norm))
    return torch.stack([sharding.full_tensor(norm).float().to(tokens.device) for norm in norms])


def count_bad_step(progress: Progress, window: Sequence[Batch], losses: Sequence[float], patience: int) -> None:
    """Report a step that was not finite by its items' ids, and stop after too many.

    Raises
    ------
    NonFiniteError
        In every process, with the items of all of them.
    """
    progress.skipped += 1
    found = processes.gather([(batch.ids, math.isfinite(loss)) for batch, loss in zip(window, losses)])
    everything = [pair for pairs in found for pair in pairs]
    bad = [ids for ids, finite in everything if not finite]
    what = "loss" if bad else "gradient"
    names = ", ".join(name for ids in bad or [ids for ids, _ in everything] for name in ids)
    count = f"{progress.skipped} in epoch {progress.epoch}"
    logger.warning("Step %s skipped (%s): non-finite %s, items %s", progress.step, count, what, names)
    if progress.skipped > patience:
        raise NonFiniteError(
            f"{count} steps had a non-finite loss or gradient, more than nonfinite_patience "
            f"{patience}; the last one's items: {names}. Check these items, or lower the "
            "learning rate or use precision bf16 or fp32"
        )
