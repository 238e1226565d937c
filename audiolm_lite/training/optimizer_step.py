"""The outcome of an optimiser step: sums over all processes, gradient norms, and what happens to a skipped step."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiolm_lite.config.errors import UserError
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training.progress import Progress

logger = logging.getLogger(__name__)


class NonFiniteError(UserError, RuntimeError):
    """More optimiser steps of an epoch than `nonfinite_patience` had a non-finite loss or gradient."""


class StepResult(NamedTuple):
    """Outcome of an optimiser step, the same in every process.

    Attributes
    ----------
    loss : float
        Sum over all answer tokens of the window, nats.
    tokens : float
        Number of these answer tokens.
    samples, audio_seconds, input_tokens, positions : float
        Items, seconds of audio, audio and text tokens, and the same with padding.
    grad_norm : float
        Norm of all gradients before clipping.
    group_norms : list of float
        Norm of the gradients of each pattern of `learning_rates`; empty where the engine reports only that of all.
    finite : bool
        Whether loss and gradient are finite, and there are answer tokens. Otherwise the step is skipped.
    overflow : bool
        Whether the gradient is not finite because of float16's loss scale. The scaler skips such a step, too, and
        lowers its scale; it is no sign of bad data.
    """

    loss: float
    tokens: float
    samples: float
    audio_seconds: float
    input_tokens: float
    positions: float
    grad_norm: float
    group_norms: list[float]
    finite: bool
    overflow: bool


def sum_window(sums: Tensor, window: Sequence[Batch]) -> Tensor:
    """Add up a window over all processes.

    Parameters
    ----------
    sums : Tensor
        [W, 2] float32, loss and answer tokens of each of the process's batches.
    window : sequence of Batch
        These batches. Those without ids only fill the window up and are not counted.

    Returns
    -------
    Tensor
        [6] float32: the first six entries of a `StepResult`.

    Examples
    --------
    >>> from audiolm_lite.data.batching import Item, collate
    >>> items = [Item({"id": "a"}, [5] * size, [5] * size, torch.zeros(1, 1, 8)) for size in (2, 3)]
    >>> sum_window(torch.tensor([[2.5, 5.0]]), [collate(items)])
    tensor([2.5000, 5.0000, 2.0000, 0.0000, 5.0000, 6.0000])
    """
    counted = [batch for batch in window if batch.ids]
    amounts = [
        sum(len(batch.ids) for batch in counted),
        sum(batch.seconds for batch in counted),
        sum(int(batch.attention_mask.sum()) for batch in counted),
        sum(batch.attention_mask.numel() for batch in counted),
    ]
    return processes.sum_over_processes(torch.cat([sums.sum(dim=0), sums.new_tensor(amounts)]))


def read_result(totals: Tensor, norms: Tensor, loss_scale: float = 1.0) -> StepResult:
    """Copy the numbers of a step to the host, which waits for the device here and nowhere else in a step.

    Parameters
    ----------
    totals : Tensor
        [6] float32, see `sum_window`.
    norms : Tensor
        [1 + groups] float32, norms of all gradients and of those of each group.
    loss_scale : float
        Factor of the loss in float16 training.

    Examples
    --------
    >>> totals = torch.tensor([12.0, 8.0, 2.0, 3.5, 20.0, 25.0])
    >>> result = read_result(totals, norms=torch.tensor([float("inf"), 1.0]), loss_scale=65536.0)
    >>> result.loss, result.tokens, result.finite, result.overflow
    (12.0, 8.0, False, True)
    """
    loss, tokens, samples, seconds, inputs, positions, norm, *group_norms = torch.cat([totals, norms]).tolist()
    # A window without answers, all of whose audio cannot be read, has no gradient: it is skipped, and no overflow.
    finite = tokens > 0 and math.isfinite(loss) and math.isfinite(norm)
    overflow = not finite and tokens > 0 and math.isfinite(loss) and loss_scale > 1
    return StepResult(loss, tokens, samples, seconds, inputs, positions, norm, group_norms, finite, overflow)


def count_step(progress: Progress, result: StepResult) -> None:
    """Move the position of a run past a step that was taken or skipped.

    Examples
    --------
    >>> progress = Progress(step=10, window=3)
    >>> count_step(progress, read_result(torch.tensor([12.0, 8.0, 2.0, 3.5, 20.0, 25.0]), torch.tensor([1.0])))
    >>> progress.step, progress.window, progress.mean_loss
    (11, 4, 1.5)
    """
    progress.step += 1
    progress.window += 1
    if result.finite:
        progress.loss_sum += result.loss
        progress.tokens += result.tokens


def report_skipped_step(progress: Progress, window: Sequence[Batch], losses: Sequence[float], patience: int) -> None:
    """Log the ids of the items of a step that was not finite, and stop after too many such steps.

    Parameters
    ----------
    progress : Progress
        Its `skipped` is counted up.
    window : sequence of Batch
        Batches of this process.
    losses : sequence of float
        Their losses.
    patience : int
        Skipped steps of an epoch that are tolerated.

    Raises
    ------
    NonFiniteError
        In every process, with the items of all of them.

    Examples
    --------
    >>> from audiolm_lite.data.batching import Item, collate
    >>> window = [collate([Item({"id": name}, [5], [5], torch.zeros(1, 1, 8))]) for name in ("a", "b")]
    >>> report_skipped_step(Progress(), window, losses=[1.5, math.nan], patience=0)
    Traceback (most recent call last):
    audiolm_lite.training.optimizer_step.NonFiniteError: 1 in epoch 1 steps had a non-finite loss or gradient, more ...
    """
    progress.skipped += 1
    own = [(batch.ids, math.isfinite(loss)) for batch, loss in zip(window, losses)]
    batches = [pair for pairs in processes.gather(own) for pair in pairs]
    bad = [ids for ids, finite in batches if not finite]
    what = "loss" if bad else "gradient"
    names = ", ".join(name for ids in bad or [ids for ids, _ in batches] for name in ids)
    count = f"{progress.skipped} in epoch {progress.epoch}"
    logger.warning("Step %s skipped (%s): non-finite %s, items %s", progress.step, count, what, names)
    if progress.skipped > patience:
        raise NonFiniteError(
            f"{count} steps had a non-finite loss or gradient, more than nonfinite_patience {patience}; items of the "
            f"last one: {names}. Check these items, lower the learning rate, or use precision bf16 or fp32"
        )


def step_record(progress: Progress, result: StepResult, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Build the line of losses.jsonl for a step.

    Parameters
    ----------
    progress : Progress
        Position after the step.
    result : StepResult
    groups : sequence of mapping
        Groups of the optimiser, with `pattern` and `lr`.

    Returns
    -------
    dict
        step, epoch, loss (mean per answer token, nats), lr (the highest), grad_norm (before clipping), tokens (of
        answers), samples, audio_seconds, input_tokens (audio and text), padding (fraction of the batches' positions),
        and `groups`: lr and grad_norm of each pattern of `learning_rates`. Over all processes.

    Examples
    --------
    >>> result = read_result(torch.tensor([12.0, 8.0, 2.0, 3.5, 20.0, 25.0]), torch.tensor([1.0, 1.0]))
    >>> record = step_record(Progress(step=10), result, [{"pattern": "adapter.*", "lr": 0.1}])
    >>> record["step"], record["loss"], record["padding"], record["groups"]
    (10, 1.5, 0.2, {'adapter.*': {'lr': 0.1, 'grad_norm': 1.0}})
    """
    rates = {group["pattern"]: group["lr"] for group in groups}
    norms: list[dict] = [{"grad_norm": norm} for norm in result.group_norms] or [{} for _ in rates]
    return {
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": result.loss / result.tokens if result.tokens else math.nan,
        "lr": max(rates.values()),
        "grad_norm": result.grad_norm,
        "tokens": int(result.tokens),
        "samples": int(result.samples),
        "audio_seconds": round(result.audio_seconds, 2),
        "input_tokens": int(result.input_tokens),
        "padding": round(1 - result.input_tokens / max(1.0, result.positions), 4),
        "groups": {pattern: {"lr": rate, **norm} for (pattern, rate), norm in zip(rates.items(), norms)},
    }
