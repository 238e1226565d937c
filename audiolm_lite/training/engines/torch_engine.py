"""Backward pass and optimiser step by torch: in one process, under DDP or under FSDP2."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiolm_lite.distributed import processes
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training.engines import sharding
from audiolm_lite.training.optimizer_step import StepResult, read_result


class TorchEngine:
    """Accumulates the gradients of a window of batches and takes the optimiser step.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel.
    optimizer : torch.optim.Optimizer
        Groups as `parameter_groups` returns them, without state.
    hparams : mapping
        `parallel`, `cpu_offload` and `max_grad_norm`.
    device : torch.device
    scaler : torch.GradScaler
        Scales the loss in float16 training.

    Attributes
    ----------
    module : nn.Module
        What to call in place of the model.
    optimizer : torch.optim.Optimizer
        Its groups have the learning rates.
    layout : None
        Checkpoints of this engine can be loaded by any number of processes (see `ZeroEngine`).
    """

    layout = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        hparams: Mapping[str, Any],
        device: torch.device,
        scaler: torch.GradScaler,
    ):
        self.module, self.optimizer, self.scaler = model, optimizer, scaler
        self.hparams, self.device = hparams, device

    def distribute(self) -> None:
        """Distribute the model over all processes, once its weights are those to start from."""
        model, parallel, cpu_offload = self.module, self.hparams["parallel"], self.hparams["cpu_offload"]
        self.module = sharding.shard_model(model, parallel, self.device, cpu_offload)
        sharding.rebind_parameters(self.optimizer, model)

    def start_window(self, window: Sequence[Batch]) -> None:
        """Begin an accumulation window without gradients; a step that was interrupted may have left some."""
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Context of the forward and backward pass of a batch; `last`: the window's last one."""
        return sharding.gradient_sync(self.module, last)

    def backward(self, objective: Tensor) -> None:
        """Add the gradients of a batch's summed loss."""
        self.scaler.scale(objective).backward()

    def step(self, totals: Tensor) -> StepResult:
        """Take the step on the mean loss of a window, or skip it where loss or gradient is not finite.

        Parameters
        ----------
        totals : Tensor
            [6] float32, see `sum_window`.
        """
        self.scaler.unscale_(self.optimizer)
        groups: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            groups.setdefault(group["pattern"], []).extend(group["params"])
        norms = average_and_clip(list(groups.values()), totals[1], self.hparams["max_grad_norm"])
        result = read_result(totals, norms, self.scaler.get_scale())
        if result.finite or result.overflow:  # the scaler has to see an overflow, to lower its scale
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def save(self, folder: Path) -> dict[str, Any]:
        """State of the optimiser and the scaler, complete in every process; nothing is written to `folder`."""
        return {
            "optimizer": sharding.full_optimizer_state(self.optimizer),
            "deepspeed": None,
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Restore what `save` returned; each process keeps its shard."""
        sharding.load_full_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def average_and_clip(groups: Sequence[Sequence[Tensor]], tokens: Tensor, max_norm: float) -> Tensor:
    """Turn summed gradients into those of the mean over `tokens`, and clip their norm over all groups and shards.

    DDP and FSDP2 average gradients over the processes, each of which has summed over its own tokens.

    Parameters
    ----------
    groups : sequence of sequence of Tensor
        Parameters of each group.
    tokens : Tensor
        Scalar, answer tokens of all processes.
    max_norm : float
        Upper limit of the norm of all groups together.

    Returns
    -------
    Tensor
        Norms [1 + groups] float32 before clipping, of all and of each group, the same in every process.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([6.0, 8.0])
    >>> average_and_clip([[weight]], tokens=torch.tensor(2), max_norm=1.0)
    tensor([5., 5.])
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    gradients = [[parameter.grad for parameter in group if parameter.grad is not None] for group in groups]
    for gradient in chain.from_iterable(gradients):
        gradient.div_((tokens / processes.world_size()).to(gradient.device))
    norms = [nn.utils.get_total_norm(group) for group in gradients]
    norms.insert(0, nn.utils.clip_grad_norm_(list(chain.from_iterable(groups)), max_norm))
    return torch.stack([sharding.full_tensor(norm).float().to(tokens.device) for norm in norms])
