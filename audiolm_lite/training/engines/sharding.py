"""Training in several processes with DDP, where each has a full copy of the model, or FSDP2, where each has a shard.

The launcher (torchrun, accelerate launch, srun) sets the number of processes. In one process these functions return
their input and do not communicate. Files contain unsharded tensors only, so that any number of processes can continue
from them. For DeepSpeed see `zero`.
"""

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


def is_sharded_run(parallel: str) -> bool:
    """Whether each process of a run with this value of `parallel` has only a shard of the model.

    Examples
    --------
    >>> is_sharded_run("deepspeed"), is_sharded_run("fsdp")  # in one process
    (True, False)
    """
    return parallel == "deepspeed" or (parallel == "fsdp" and processes.world_size() > 1)


def shard_model(model: nn.Module, parallel: str, device: torch.device | str, cpu_offload: bool = False) -> nn.Module:
    """Prepare a model for training by all processes.

    Parameters
    ----------
    model : AudioLanguageModel
        With "fsdp" its parameters become DTensors (see `rebind_parameters`), except quantised weights, which stay
        unsharded. Processes whose parameters are on the meta device receive them from the first process.
    parallel : str
        "ddp" or "fsdp".
    device : torch.device or str
    cpu_offload : bool
        With "fsdp": keep shards that are not in use in the host's memory.

    Returns
    -------
    nn.Module
        What to call in place of the model.
    """
    if processes.world_size() == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh(torch.device(device).type, (processes.world_size(),))
    state = model.state_dict() if processes.is_main() else {}
    options: dict[str, Any] = {
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
    """Context of a batch's forward and backward pass; the window's last batch averages gradients over processes."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
        yield


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only a shard of a tensor, by FSDP2 or ZeRO-3.

    Examples
    --------
    >>> is_sharded(torch.zeros(2))
    False
    """
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor unsharded and without gradient; a collective call if it is sharded.

    Examples
    --------
    >>> full_tensor(nn.Parameter(torch.ones(2)))
    tensor([1., 1.])
    """
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()  # type: ignore[attr-defined]
    if is_sharded(tensor):
        from deepspeed.runtime.zero import GatheredParameters  # optional; installed where ZeRO-3 has sharded a tensor

        with GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def unshard_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Replace sharded parameters by unsharded ones; the model cannot be called afterwards."""
    for name in names:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = getattr(module, last)
        if is_sharded(tensor):
            module.register_parameter(last, nn.Parameter(full_tensor(tensor), tensor.requires_grad))


def rebind_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Replace the parameters of an optimiser without state by the model's current ones of the same names.

    Examples
    --------
    >>> old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> groups = [{"params": list(old.parameters()), "names": ["weight", "bias"]}]
    >>> optimizer = torch.optim.AdamW(groups)
    >>> rebind_parameters(optimizer, new)
    >>> optimizer.param_groups[0]["params"][1] is new.bias
    True
    """
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["names"]]


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict:
    """State of an optimiser with unsharded tensors, the same for any number of processes.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> weight.grad = torch.tensor([1.0, 2.0])
    >>> optimizer.step()
    >>> full_optimizer_state(optimizer)["state"][0]["exp_avg"]
    tensor([0.1000, 0.2000])
    """
    state = optimizer.state_dict()
    moments = {
        index: {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": moments}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load what `full_optimizer_state` returned; each process keeps its shard.

    Examples
    --------
    >>> optimizer, resumed = (torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=lr) for lr in (0.5, 0.1))
    >>> load_full_optimizer_state(resumed, full_optimizer_state(optimizer))
    >>> resumed.param_groups[0]["lr"]
    0.5
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def shard(parameter: Tensor, value: Any) -> Any:
        if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
            return value
        value = value.to(parameter.to_local().device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    moments = {
        index: {name: shard(parameters[index], value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
