"""Several processes on torch's own engines; how many there are, the launcher says (torchrun, accelerate launch, srun).

The same lines run in one process, where nothing here communicates. Two engines share the work: DDP, every process with
the whole model, and FSDP2 (`fully_shard`), every process with a share of each tensor. What is written to disk is always
whole, so that any number of processes can go on from it. (For DeepSpeed's engine see `zero`.)
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from audiolm_lite.distributed import processes
from audiolm_lite.modeling.transformer_blocks import find_blocks

logger = logging.getLogger(__name__)


def shard_model(model: nn.Module, parallel: str, device: torch.device | str, cpu_offload: bool = False) -> nn.Module:
    """Prepare a model for training by all processes; returns what to call in place of it.

    With "fsdp" the model's parameters become DTensors: their optimiser is told by `adopt`. Processes whose parameters
    are on the meta device get them from the first one. Weights that are quantised stay whole.
    """
    if processes.world_size() == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh(torch.device(device).type, (processes.world_size(),))
    state = model.state_dict() if processes.is_main() else {}
    options = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
        "ignored_params": {p for p in model.parameters() if not p.is_floating_point()},
    }
    for part in filter(None, (model.encoder, model.llm)):
        for block in find_blocks(part):
            fully_shard(block, **options)
    on_meta = processes.any_rank(meta=any(p.is_meta for p in model.parameters()))["meta"]
    fully_shard(model, **options)
    if on_meta:
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


@contextmanager
def gradient_sync(module: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of a batch: gradients are averaged over processes with a window's last batch only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
        yield


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has but its share of a tensor, by FSDP2 or ZeRO-3."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out among processes, whole and without gradient; all of them must ask."""
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    if is_sharded(tensor):
        from deepspeed.runtime.zero import GatheredParameters  # optional, and here in use

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def unshard_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Replace parameters that are shared out by whole ones; the model is not called after that."""
    for name in names:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = getattr(module, last)
        if is_sharded(tensor):
            module.register_parameter(last, nn.Parameter(full_tensor(tensor), tensor.requires_grad))


def rebind_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Point an optimiser without state to the model's present parameters, by name."""
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict:
    """State of an optimiser with whole tensors, the same for any number of processes."""
    state = optimizer.state_dict()
    moments = {
        index: {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": moments}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
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
