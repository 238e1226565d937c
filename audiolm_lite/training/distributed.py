"""Several processes on torch's own engines; how many there are, the launcher says (torchrun, accelerate launch, srun).

The same lines run in one process, where nothing here communicates. Two engines share the work: DDP, every process with
the whole model, and FSDP2 (`fully_shard`), every process with a share of each tensor. What is written to disk is always
whole, so that any number of processes can go on from it. (For DeepSpeed's engine see `zero`.)
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from audiolm_lite.training.blocks import blocks

logger = logging.getLogger(__name__)


class PeerError(RuntimeError):
    """Another process failed, so this one ends too; the message has that one's rank and error."""


def start(device: str | None) -> str | None:
    """Join the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_ADDR ...).

    Parameters
    ----------
    device : str, optional
        What the command line asks for; None: a GPU where there is one.

    Returns
    -------
    str or None
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl")  # what the processes agree on stays on the CPU
    else:
        device = device or "cpu"
        if not dist.is_initialized():
            dist.init_process_group("gloo")
    return device


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def gather(value: Any) -> list:
    """`value` of every process, in the order of their ranks."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def agree(error: Exception | None = None, **wishes: bool) -> dict[str, bool]:
    """Which wishes any process has; where one has an error, all raise, so that none waits for it in vain.

    Raises
    ------
    Exception
        The process's own `error`.
    PeerError
        Another one's.
    """
    if error is not None and size() == 1:
        raise error
    votes = gather({"error": error and f"{type(error).__name__}: {error}", **wishes})
    if error is not None:
        raise error
    for number, vote in enumerate(votes):
        if vote["error"]:
            raise PeerError(f"process {number} of {size()} failed, so all stop: {vote['error']}")
    return {name: any(vote[name] for vote in votes) for name in wishes}


def add_up(sums: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place."""
    if size() > 1:
        dist.all_reduce(sums)
    return sums


def share_out(model: nn.Module, parallel: str, device: torch.device | str, cpu_offload: bool = False) -> nn.Module:
    """Prepare a model for training by all processes; returns what to call in place of it.

    With "fsdp" the model's parameters become DTensors: their optimiser is told by `adopt`. Processes whose parameters
    are on the meta device get them from the first one. Weights that are quantised stay whole.
    """
    if size() == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh(torch.device(device).type, (size(),))
    state = model.state_dict() if is_main() else {}
    options = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
        "ignored_params": {p for p in model.parameters() if not p.is_floating_point()},
    }
    for part in filter(None, (model.encoder, model.llm)):
        for block in blocks(part):
            fully_shard(block, **options)
    on_meta = agree(meta=any(p.is_meta for p in model.parameters()))["meta"]
    fully_shard(model, **options)
    if on_meta:
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


@contextmanager
def gradients_of(module: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of a batch: gradients are averaged over processes with a window's last batch only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
        yield


def is_shared_out(tensor: Tensor) -> bool:
    """Whether this process has but its share of a tensor, by FSDP2 or ZeRO-3."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out among processes, whole and without gradient; all of them must ask."""
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    if is_shared_out(tensor):
        from deepspeed.runtime.zero import GatheredParameters  # optional, and here in use

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def make_whole(model: nn.Module, names: Iterable[str]) -> None:
    """Replace parameters that are shared out by whole ones; the model is not called after that."""
    for name in names:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = getattr(module, last)
        if is_shared_out(tensor):
            module.register_parameter(last, nn.Parameter(whole(tensor), tensor.requires_grad))


def adopt(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Point an optimiser without state to the model's present parameters, by name."""
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict:
    """State of an optimiser with whole tensors, the same for any number of processes."""
    state = optimizer.state_dict()
    moments = {
        index: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Take over what `optimizer_state` gave; every process keeps its share."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def shared_out(parameter: Tensor, value: Any) -> Any:
        if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
            return value
        value = value.to(parameter.to_local().device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    moments = {
        index: {name: shared_out(parameters[index], value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
