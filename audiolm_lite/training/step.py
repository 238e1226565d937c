"""One optimiser step's gradients: the exact mean over a window's tokens, clipped as one, refused when not finite."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from audiolm_lite.data.batching import Batch
from audiolm_lite.training import distributed

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
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
    """

    epoch: int = 1
    window: int = 0
    step: int = 0
    skipped: int = 0
    loss_sum: float = 0.0
    tokens: float = 0.0


def average_and_clip(parameters: Iterable[Tensor], tokens: Tensor, max_norm: float) -> Tensor:
    """Turn summed gradients into those of the mean over `tokens`, and clip their norm over all groups and shares.

    Engines average gradients over the processes, each of which has summed over its own tokens; `tokens` are those of
    all of them.

    Returns
    -------
    Tensor
        The norm before clipping, a scalar, the same in every process.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad.div_((tokens / distributed.size()).to(parameter.grad.device))
    return distributed.whole(nn.utils.clip_grad_norm_(parameters, max_norm))


def count_bad_step(progress: Progress, window: Sequence[Batch], losses: Sequence[float], patience: int) -> None:
    """Report a step that was not finite by its items' ids, and stop after too many.

    Raises
    ------
    NonFiniteError
        In every process, with the items of all of them.
    """
    progress.skipped += 1
    found = distributed.gather([(batch.ids, math.isfinite(loss)) for batch, loss in zip(window, losses)])
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
