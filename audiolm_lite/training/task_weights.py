"""Weights of tasks in the loss: an answer of one word counts as much as a long transcript.

The loss is a mean over the answer tokens of an optimiser step. A label such as "female" has two of them, a transcript
fifty, so in a mixture labels hardly change the model, however many rows they have.
"""

import math
from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel, supervised_positions
from audiolm_lite.modeling.batch import Batch


class TaskWeights:
    """Objective of a batch, for `AudioLanguageModel.loss`: each answer token counts with the weight of its task.

    The sum is divided by the number of tokens, as without weights. AdamW's steps do not depend on the scale of the
    loss, so weights only change the shares of the tasks.

    Parameters
    ----------
    weights : mapping of str to float
        Weight of each task, above 0; tasks without one have 1.
    tasks : collection of str
        Tasks of the training set, and those that the stage selects.

    Raises
    ------
    ConfigError
        A weight is not a number above 0, or its task is not one of `tasks`.

    Examples
    --------
    >>> TaskWeights({"gender": 8}, tasks=["asr"])
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: task_weights: "gender" is no task of this stage; its tasks: asr
    """

    def __init__(self, weights: Mapping[str, float], tasks: Collection[str]):
        for task, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ConfigError(f"task_weights: {task} is {weight!r}, it must be a number above 0")
            if task not in tasks:
                known = ", ".join(sorted(tasks))
                raise ConfigError(f'task_weights: "{task}" is no task of this stage; its tasks: {known}')
        self.weights = dict(weights)

    def __call__(self, model: AudioLanguageModel, batch: Batch) -> tuple[Callable, list[Tensor]]:
        """Return the loss of a chunk of positions from logits, targets and weights, and the weights [K] float32."""
        labels = batch.labels
        of_rows = [self.weights.get(row["task"], 1.0) for row in batch.rows]
        if batch.packed:
            assert batch.position_ids is not None
            items = (batch.position_ids == 0).long().cumsum(dim=1) - 1  # [1, S]
        else:
            items = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        return _weighted, [labels.new_tensor(of_rows, dtype=torch.float32)[items[:, 1:][supervised_positions(batch)]]]


def _weighted(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum(), (logits.argmax(dim=-1) == targets).sum()
