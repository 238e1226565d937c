"""ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020, arXiv 1910.02054) by DeepSpeed, with the calls of `TorchEngine`.

One call of DeepSpeed's engine averages the gradients over the processes, clips them and skips a step whose gradient is
not finite. The training loop cannot divide the gradients in between, so it divides the objective by the window's answer
tokens *before* the backward pass, which gives the same exact mean.

Each process reads the complete model before the engine shards it (no `zero.Init`), so the model must fit each device.
"""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.audio_language_model import supervised_positions
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training.engines.zero_config import offloads_optimizer, read_config, require_deepspeed
from audiolm_lite.training.optimizer_step import StepResult, read_result

SHARDS = "deepspeed"  # folder of a checkpoint with each process's shard of the optimiser's state


class ZeroEngine:
    """Accumulates the gradients of a window of batches and takes the optimiser step with DeepSpeed's engine.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel.
    optimizer : torch.optim.AdamW
        Groups as `parameter_groups` returns them, without state.
    hparams : mapping
        `deepspeed_config` and the keys that complete it (see `read_config`).
    device : torch.device

    Attributes
    ----------
    module : nn.Module
        What to call in place of the model: from `distribute` on, DeepSpeed's engine.
    optimizer : torch.optim.Optimizer
        Its groups have the learning rates. DeepSpeed's own optimiser where the state is kept in the host's memory.
    layout : dict
        ZeRO's `stage` and the number of processes, `ranks`. Checkpoints can be loaded with the same layout only.

    Raises
    ------
    ConfigError
        See `read_config`.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, hparams: Mapping[str, Any], device: torch.device
    ):
        self.config = read_config(hparams)
        self.module, self.optimizer, self.device = model, optimizer, device
        self.layout = {"stage": self.config["zero_optimization"]["stage"], "ranks": processes.world_size()}
        self._tokens = 0  # answer tokens of the current window, of all processes

    def distribute(self) -> None:
        """Shard the model in place, once its weights are those to start from; parameters keep their names.

        Raises
        ------
        ConfigError
            ZeRO does not support the model's parameters.
        """
        model, stage = self.module, self.layout["stage"]
        _check_parameters(model, self.optimizer, stage)
        if stage == 3:  # all processes gather the output layer for each call, so they must call it equally often
            model.loss_chunk = sys.maxsize
        deepspeed = _import(self.device)
        if not dist.is_initialized():  # a single process without a launcher
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", str(self.device.index or 0))
        if offloads_optimizer(self.config):
            adam = deepspeed.ops.adam.DeepSpeedCPUAdam
            betas = self.optimizer.defaults["betas"]
            self.optimizer = adam(self.optimizer.param_groups, betas=betas, adamw_mode=True)
        self.module, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=dict(self.config))
        self.module.optimizer.check_grad_overflow = True  # else ZeRO-2 steps where 16-bit parameters have a NaN

    def start_window(self, window: Sequence[Batch]) -> None:
        """Count the answer tokens of a window in all processes, over which the gradients are averaged."""
        own = sum(int(supervised_positions(batch).sum()) for batch in window)
        self._tokens = int(processes.sum_numbers([own])[0])

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Context of the forward and backward pass of a batch; `last`: the window's last one."""
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, objective: Tensor) -> None:
        """Add the gradients of a batch's summed loss."""
        factor = processes.world_size() / self._tokens if self._tokens else math.nan
        # NaN where the loss is not finite, so that the gradient is not either and the engine skips the step
        self.module.backward(objective * (factor + 0 * objective.detach()))

    def step(self, totals: Tensor) -> StepResult:
        """Clip the gradients and take the step, or skip it where a gradient is not finite.

        Parameters
        ----------
        totals : Tensor
            [6] float32, see `sum_window`.

        Raises
        ------
        RuntimeError
            The losses of the window are sums over another number of tokens than its labels have.
        """
        if int(totals[1]) != self._tokens:
            raise RuntimeError(
                f"the losses count {int(totals[1])} answer tokens and the labels {self._tokens}: use parallel ddp"
            )
        self.module.step()
        return read_result(totals, totals.new_tensor([float(self.module.get_global_grad_norm())]))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write each process's shard of the optimiser's state to `folder`/deepspeed, without frozen parameters."""
        self.module.save_checkpoint(folder, tag=SHARDS, save_latest=False, exclude_frozen_parameters=True)
        return {"optimizer": None, "deepspeed": self.layout, "scaler": {}}

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Restore what `save` wrote; DeepSpeed unpickles, so torch's restricted reader reads each file first.

        Raises
        ------
        ConfigError
            A file contains classes that DeepSpeed does not write; PeerError where another process has read that file.
        """
        error = None
        try:
            for file in sorted((folder / SHARDS).glob("*.pt"))[processes.rank() :: processes.world_size()]:
                read_shard(file)
        except ConfigError as raised:
            error = raised
        processes.any_rank(error)
        self.module.load_checkpoint(folder, tag=SHARDS, load_module_strict=False, load_lr_scheduler_states=False)


def require_layout(saved: Mapping | None, current: Mapping | None, folder: Path) -> None:
    """Raise ConfigError where a checkpoint was saved by another engine, ZeRO stage or number of processes.

    Parameters
    ----------
    saved, current : mapping or None
        `layout` of the engine that saved the checkpoint and of the present one.
    folder : Path
        The checkpoint.

    Examples
    --------
    >>> require_layout(None, None, Path("step_00000100"))
    >>> require_layout({"stage": 2, "ranks": 4}, {"stage": 2, "ranks": 8}, Path("step_00000100"))
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: step_00000100 was saved by DeepSpeed (ZeRO-2, 4 processes) and cannot ...
    """
    if saved != current:
        engines = [
            f"DeepSpeed (ZeRO-{layout['stage']}, {layout['ranks']} processes)" if layout else "another engine"
            for layout in (saved, current)
        ]
        raise ConfigError(
            f"{folder} was saved by {engines[0]} and cannot be loaded by {engines[1]}. Use the same parallel, "
            "deepspeed_config and number of processes, or consolidate it for other engines: "
            f"audiolm-lite unshard {folder} <output_folder of a new run>/checkpoints"
        )


def read_shard(file: Path) -> dict[str, Any]:
    """Read a file that DeepSpeed has written, on the CPU, without running code that the file may contain.

    The file is a pickle. Torch's restricted reader accepts tensors, plain values and the classes of DeepSpeed that
    such files contain.

    Raises
    ------
    ConfigError
        The file contains anything else, or is damaged.
    """
    require_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{file}: not a file that DeepSpeed writes, or damaged ({error})") from error


def _check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> None:
    groups = [{parameter.dtype for parameter in group["params"]} for group in optimizer.param_groups]
    if any(len(dtypes) > 1 for dtypes in groups):
        raise ConfigError(
            "parallel deepspeed joins the parameters of a group in one tensor, but a pattern of learning_rates matches "
            "parameters of several dtypes: give each part of the model a pattern of its own, e.g. adapter.* and llm.*"
        )
    if stage == 3 and len(set.union(*groups)) > 1:
        raise ConfigError("ZeRO-3 trains parameters of one dtype: set the llm's dtype to float32, or use stage 2")
    if stage == 3 and any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ConfigError("ZeRO-3 cannot shard quantised weights: use stage 2, or parallel ddp or fsdp")


def _import(device: torch.device) -> Any:
    """Import DeepSpeed, for the CPU where that is the device: it otherwise looks for an accelerator itself."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)  # it logs each buffer
    # it calls functions of torch.distributed that will be renamed, and would warn in each step
    warnings.filterwarnings("ignore", message=".*torch.distributed", category=FutureWarning)
    return deepspeed
