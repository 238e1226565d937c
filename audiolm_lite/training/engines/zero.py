"""ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020, arXiv 1910.02054) by DeepSpeed, behind the calls of the training loop.

DeepSpeed's engine averages the gradients over the processes, clips them and skips a step whose gradient is not finite,
all in a call that leaves no place for ours in between. So the objective is divided by the answer tokens of the window
*before* the backward pass, which gives the same exact mean; clipping, rates and precision are set from the keys of the
YAML file, and a JSON file that says them, too, is refused.

Every process reads the whole model before the engine takes its share (no `zero.Init`), so it must fit on each device.
"""

import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed import processes
from audiolm_lite.modeling.audio_language_model import supervised_positions
from audiolm_lite.modeling.batch import Batch

SHARDS = "deepspeed"  # folder of a checkpoint with each process's share of the optimiser's state
# What the YAML file says, by the keys of DeepSpeed's JSON that would say it again.
_OURS = {
    "optimizer": "optimizer, learning_rates, betas and weight_decay",
    "scheduler": "schedule and warmup_steps",
    "gradient_clipping": "max_grad_norm",
    "gradient_accumulation_steps": "grad_accumulation_factor",
    "train_batch_size": "batch_tokens",
    "train_micro_batch_size_per_gpu": "batch_tokens",
    **dict.fromkeys(("fp16", "bf16", "amp", "torch_autocast", "data_types"), "precision and the llm's dtype"),
}
_THEIRS = (
    "zero_optimization",
    "communication_data_type",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "steps_per_print",
    "dump_state",
)


def read_config(hparams: Mapping) -> dict[str, Any]:
    """DeepSpeed's configuration: the file `deepspeed_config` names, completed from the keys of the YAML file.

    Raises
    ------
    ConfigError
        DeepSpeed is not installed; no such file; a key that is not DeepSpeed's to decide; a stage, an offload, an
        optimiser or a precision that does not go with it.
    """
    require_deepspeed()
    config = _read_file(hparams["deepspeed_config"])
    where = f"deepspeed_config {hparams['deepspeed_config']}"
    for name in config:
        if name in _OURS:
            raise ConfigError(f"{where}: remove {name}; the YAML file says it: {_OURS[name]}")
        if name not in _THEIRS:
            raise ConfigError(f"{where}: {name} is not supported here; known are {', '.join(_THEIRS)}")
    zero = config.get("zero_optimization") or {}
    if zero.get("stage") not in (2, 3):
        raise ConfigError(f"{where}: zero_optimization.stage is {zero.get('stage')}; choose 2 or 3")
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device", "none") not in ("none", "cpu"):
            raise ConfigError(f"{where}: zero_optimization.{name}.device is {zero[name]['device']}; choose cpu or none")
    if not zero.get("compute_grad_norm", True):
        raise ConfigError(f"{where}: remove zero_optimization.compute_grad_norm; max_grad_norm needs the norm")
    if hparams["optimizer"] != "adamw":
        raise ConfigError(f"optimizer {hparams['optimizer']} does not go with parallel deepspeed: use adamw, or ddp")
    if zero["stage"] == 3 and (hparams["loss_chunk"] or hparams["loss_kernel"] != "chunked"):
        raise ConfigError("ZeRO-3 computes a batch's logits at once: leave loss_chunk and loss_kernel, or use stage 2")
    if zero["stage"] == 3 and hparams["compile"]:
        raise ConfigError("compile gains nothing with ZeRO-3, where parameters change their size: use stage 2")
    if hparams["precision"] == "fp16":
        # its scaler takes the scale off the gradients after they were clipped
        raise ConfigError("precision fp16 does not go with parallel deepspeed: use bf16, or parallel ddp or fsdp")
    if hparams["precision"] == "bf16":
        # no module is named whose gradients may be added up in 16 bits
        autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        config["torch_autocast"] = autocast
    return {
        "steps_per_print": None,
        **config,
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks, and uses it for its own statistics alone
        "gradient_accumulation_steps": 1,  # the loop says which batch of a window is the last
        "gradient_clipping": hparams["max_grad_norm"],
        "zero_allow_untested_optimizer": True,
    }


class Zero:
    """DeepSpeed's engine around a model, with what the training loop asks of it.

    Parameters
    ----------
    model : nn.Module
        Shared out in place: its parameters keep their names, and those that are frozen stay so.
    optimizer : torch.optim.AdamW
        Groups of the model's parameters, without state.
    config : dict
        As `read_config` gives it.
    device : torch.device

    Attributes
    ----------
    engine : nn.Module
        What to call in place of the model.
    optimizer : torch.optim.Optimizer
        The one whose groups have the rates: DeepSpeed's own where the optimiser's state lies in the host's memory.
    tokens : int
        Answer tokens of the present window, of all processes.
    layout : dict
        What a checkpoint must have been saved with to be loaded: `stage` and number of processes, `ranks`.

    Raises
    ------
    ConfigError
        Parameters that ZeRO cannot hold.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping, device: torch.device):
        stage = config["zero_optimization"]["stage"]
        _check_parameters(model, optimizer, stage)
        if stage == 3:  # processes must call the output layer equally often, since all gather it for each call
            model.loss_chunk = sys.maxsize
        deepspeed = _import(device)
        if not dist.is_initialized():  # one process, on its own
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
        if _offloaded(config):
            adam = deepspeed.ops.adam.DeepSpeedCPUAdam
            optimizer = adam(optimizer.param_groups, betas=optimizer.defaults["betas"], adamw_mode=True)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))
        self.optimizer = optimizer
        self.engine.optimizer.check_grad_overflow = True  # ZeRO-2 would step where 16-bit parameters have a NaN
        self.layout = {"stage": stage, "ranks": processes.world_size()}
        self.tokens = 0

    def begin(self, window: Sequence[Batch]) -> None:
        """Count the answer tokens of a window in all processes; the gradients to come are of the mean over them."""
        self.tokens = sum(processes.gather(sum(int(supervised_positions(batch).sum()) for batch in window)))

    def backward(self, objective: Tensor, last: bool) -> None:
        """Add the gradient of a batch's summed loss; `last` says that the window's step comes next."""
        self.engine.set_gradient_accumulation_boundary(last)
        share = processes.world_size() / self.tokens if self.tokens else math.nan
        # NaN where the loss is not finite, so that the gradient is not either and the engine skips the step
        self.engine.backward(objective * (share + 0 * objective.detach()))

    def step(self, tokens: Tensor) -> Tensor:
        """Clip and step, or skip the step where a gradient is not finite; returns its norm [1] float32.

        Raises
        ------
        RuntimeError
            The losses of the window are sums over other `tokens` than its labels have.
        """
        if int(tokens) != self.tokens:
            raise RuntimeError(f"the losses count {int(tokens)} answer tokens and the labels {self.tokens}: use ddp")
        self.engine.step()
        return tokens.new_tensor([float(self.engine.get_global_grad_norm())])

    def save(self, folder: Path) -> None:
        """Write each process's share of the optimiser's state to `folder`/deepspeed, without frozen parameters."""
        self.engine.save_checkpoint(folder, tag=SHARDS, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote; DeepSpeed unpickles, so each file is first read with torch's restricted reader.

        Raises
        ------
        ConfigError
            A file names what DeepSpeed does not write; PeerError where another process has read that file.
        """
        error = None
        try:
            for file in sorted((folder / SHARDS).glob("*.pt"))[processes.rank() :: processes.world_size()]:
                read_shard(file)
        except ConfigError as raised:
            error = raised
        processes.any_rank(error)
        self.engine.load_checkpoint(folder, tag=SHARDS, load_module_strict=False, load_lr_scheduler_states=False)


def require_deepspeed() -> None:
    """Raise ConfigError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "DeepSpeed is not installed: pip install 'audiolm_lite[distributed]', or pip install deepspeed"
        )


def require_layout(saved: Mapping | None, now: Mapping | None, folder: Path) -> None:
    """Raise ConfigError where a checkpoint's optimiser state is not of this engine, stage and number of processes."""
    if saved != now:
        there, here = (
            f"DeepSpeed, ZeRO-{layout['stage']}, on {layout['ranks']} processes" if layout else "another engine"
            for layout in (saved, now)
        )
        raise ConfigError(
            f"{folder} was saved by {there}, and this run is on {here}. Use the same parallel, deepspeed_config and "
            "number of processes, or make it whole for other engines: python -m audiolm_lite.training.engines.unshard "
            f"{folder} <output_folder of a new run>/checkpoints"
        )


def read_shard(file: Path) -> dict[str, Any]:
    """Read a file of DeepSpeed's without running code that it may name; on the CPU.

    It is a pickle, of which torch's restricted reader takes tensors, plain values and the classes of DeepSpeed that
    belong there.

    Raises
    ------
    ConfigError
        It names anything else, or is damaged.
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


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None:
        raise ConfigError("parallel deepspeed needs deepspeed_config, a JSON file such as hparams/deepspeed/zero2.json")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed_config {path}: no JSON file that can be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"deepspeed_config {path}: must be an object, as in hparams/deepspeed/zero2.json")
    return _decided(config)


def _decided(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that decide something: files made for other libraries leave some to them as "auto"."""
    entries = {name: _decided(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in entries.items() if value not in ("auto", {})}


def _offloaded(config: Mapping) -> bool:
    return (config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") == "cpu"


def _check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> None:
    groups = [{parameter.dtype for parameter in group["params"]} for group in optimizer.param_groups]
    if any(len(dtypes) > 1 for dtypes in groups):
        raise ConfigError(
            "parallel deepspeed makes one tensor of a group's parameters, and here a pattern of learning_rates has "
            "parameters of several dtypes: give each part a pattern of its own, e.g. adapter.* and llm.*"
        )
    if stage == 3 and len(set.union(*groups)) > 1:
        raise ConfigError("ZeRO-3 trains parameters of one dtype: set the llm's dtype to float32, or use stage 2")
    if stage == 3 and any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ConfigError("ZeRO-3 cannot share out quantised weights: use stage 2, or parallel ddp or fsdp")


def _import(device: torch.device) -> Any:
    """DeepSpeed, told where it runs before it looks for itself."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)  # it tells of every buffer
    # functions of torch.distributed that it calls are to be renamed; once a step would be too often to hear it
    warnings.filterwarnings("ignore", message=".*torch.distributed", category=FutureWarning)
    return deepspeed
