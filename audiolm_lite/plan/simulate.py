"""Count what a training step allocates by running it on tensors without content.

PyTorch's fake tensors have a shape, a number format and a device, and their operations compute nothing; `Allocations`
follows their storages as they come and go. So the count holds for any model, loss and way of recomputing, temporary
tensors and the order of the backward pass included.

Attention on fake CPU tensors is the CPU's fused kernel, which keeps queries, keys, values, output and mask as the
GPU's fused kernels do.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import IGNORE, Batch
from audiolm_lite.plan.outline import exchange_bytes, optimizer_bytes, weight_bytes
from audiolm_lite.plan.processes import share_of, shared_gradients

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Estimate:
    """Bytes that a training step needs, in each process.

    Attributes
    ----------
    weights : dict of str to int
        By part.
    optimizer, gradients : int
        AdamW's moments; one gradient for each trainable parameter.
    kept : dict of str to int
        The batch, and the activations that each part keeps for the backward pass.
    temporary : int
        What else exists at the worst moment, less what no longer or not yet exists then; so it can be negative.
    exchange : int
        What several processes gather from each other or reduce.
    """

    weights: dict[str, int]
    optimizer: int
    gradients: int
    kept: dict[str, int]
    temporary: int
    exchange: int = 0

    @property
    def step(self) -> int:
        """What comes and goes with each step: all but weights and optimiser."""
        return self.gradients + sum(self.kept.values()) + self.temporary + self.exchange

    @property
    def total(self) -> int:
        """Everything, at the worst moment."""
        return sum(self.weights.values()) + self.optimizer + self.step


class Allocations(TorchDispatchMode):
    """Follow the storages that operations make while the mode is on.

    Attributes
    ----------
    live, peak : int
        Bytes that exist now, and the most that ever did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and count the storages of its results that are not those of its arguments."""
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in given and id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, id(storage))
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)


class KnownMasks(TorchFunctionMode):
    """Answer what a model asks of a fake tensor's content: how much of a mask is True, and whether checks pass.

    Parameters
    ----------
    counts : mapping
        Shape of a mask -> how many of its entries are True; all of them where it is not given, which needs most memory.
    """

    def __init__(self, counts: Mapping[tuple[int, ...], int]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Select by number where a mask selects, and find nothing wrong; all else is as ever."""
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            tensor, mask = args
            chosen = torch.zeros(self.counts.get(tuple(mask.shape), mask.numel()), dtype=torch.int64)
            return tensor.flatten(0, mask.dim() - 1)[chosen]
        if function in (Tensor.__bool__, torch.equal):  # "is anything wrong?", "is all as it should be?"
            return function is torch.equal
        return function(*args, **(kwargs or {}))


def estimate(model: AudioLanguageModel, batch: Batch, hparams: Mapping) -> Estimate:
    """Reckon the memory of an optimiser step on batches like this one.

    Parameters
    ----------
    model : AudioLanguageModel
        Of `outline_model`; left with fake tensors in place of those on the meta device.
    batch : Batch
        Real, on the CPU.
    hparams : mapping
        `precision`, `optimizer`, `grad_accumulation_factor`, and the blocks `llm` and `encoder`; with `processes` above
        1 also `parallel` and `cpu_offload`.
    """
    sizes, exchange, share = weight_bytes(model, hparams), exchange_bytes(model, hparams), share_of(hparams)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    shared = round(share * gradients)
    accumulates = hparams["grad_accumulation_factor"] > 1
    if not accumulates:  # else FSDP2 keeps them whole until a window's last batch
        gradients = shared
    fake = detect_fake_mode(tuple(model.parameters())) or FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(model, fake)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    allocations = Allocations()
    dtype = AUTOCAST.get(hparams["precision"])
    supervised = (batch.labels[:, 1:] != IGNORE) & batch.attention_mask[:, :-1]
    counts = {tuple(supervised.shape): int(supervised.sum())}
    with fake, allocations:
        if accumulates:  # those of the batches before
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        before = allocations.live
        parts = {"encoder": model.encoder, "adapter": model.adapter}
        autocast = nullcontext() if dtype is None else torch.autocast("cpu", dtype, cache_enabled=False)
        with KnownMasks(counts), _growth_of(parts, allocations) as kept, autocast:
            loss = model(batch).total
        kept["LLM and loss"] = allocations.live - before - sum(kept.values())
        with nullcontext() if accumulates or share == 1 else shared_gradients(trained, share):
            loss.backward()
        for parameter in trained:
            parameter.grad = None
    inputs = sum(tensor.nbytes for tensor in vars(batch).values() if isinstance(tensor, Tensor))
    activations = sum(kept.values())
    # the optimiser's own temporary tensors (a denominator for every parameter) meet no activations, and DDP's buckets,
    # but nothing that FSDP2 has gathered
    stepping = shared + (0 if hparams["optimizer"].endswith("8bit") else shared) + (exchange if share == 1 else 0)
    peak = max(allocations.peak + exchange, stepping)
    return Estimate(
        weights=sizes,
        optimizer=round(share * optimizer_bytes(model, hparams["optimizer"])),
        gradients=gradients,
        kept={"batch": inputs, **kept},
        temporary=peak - activations - gradients - exchange + _largest_quantised(model, hparams),
        exchange=exchange,
    )


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer on the meta device by a fake one on the CPU; tied ones stay tied."""
    replaced: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
                    continue
                if id(tensor) not in replaced:
                    with mode:
                        made = torch.empty(tensor.shape, dtype=tensor.dtype)
                        parameter = isinstance(tensor, nn.Parameter)
                        made = nn.Parameter(made, requires_grad=tensor.requires_grad) if parameter else made
                    replaced[id(tensor)] = made
                tensors[name] = replaced[id(tensor)]


@contextmanager
def _growth_of(parts: Mapping[str, nn.Module | None], allocations: Allocations) -> Iterator[dict[str, int]]:
    """Bytes by which allocations grow in the forward pass of each part."""
    grown: dict[str, int] = {}
    hooks = []
    for name, part in parts.items():
        if part is not None:
            grown[name] = 0

            def begin(*_: object, name: str = name) -> None:
                grown[name] -= allocations.live

            def end(*_: object, name: str = name) -> None:
                grown[name] += allocations.live

            hooks += [part.register_forward_pre_hook(begin), part.register_forward_hook(end)]
    try:
        yield grown
    finally:
        for hook in hooks:
            hook.remove()


def _largest_quantised(model: AudioLanguageModel, hparams: Mapping) -> int:
    """Bytes of the largest LLM layer unpacked to compute with, where weights are in 4 bits."""
    if hparams["llm"].get("quantization") != "4bit":
        return 0
    linear = [m for m in model.llm.modules() if isinstance(m, nn.Linear) and m is not model.llm.get_output_embeddings()]
    return max(layer.weight.nbytes for layer in linear)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
