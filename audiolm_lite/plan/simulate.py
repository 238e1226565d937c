"""Count what a training step allocates by running it on tensors without content.

PyTorch's fake tensors have a shape, a dtype and a device; operations on them compute nothing. `AllocationCounter`
counts their storages while they exist. So the count holds for any model, loss and activation checkpointing. It includes
temporary tensors and follows the order of the backward pass.

Attention on fake CPU tensors is the CPU's fused kernel. Like those of GPUs it saves queries, keys, values, output and
mask for the backward pass.
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
from audiolm_lite.plan.meta_model import communication_bytes, optimizer_bytes, weight_bytes
from audiolm_lite.plan.process_memory import shard_gradients, sharded_fraction

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Estimate:
    """Bytes that a training step needs, per process.

    Attributes
    ----------
    weights : dict of str to int
        By part.
    optimizer, gradients : int
        AdamW's moments; one gradient per trainable parameter.
    saved : dict of str to int
        The batch, and the activations that each part saves for the backward pass.
    temporary : int
        Other tensors at the moment of the peak, less the gradients and activations that do not exist at that moment.
        So it can be negative.
    communication : int
        Buffers in which several processes gather weights and reduce gradients.
    """

    weights: dict[str, int]
    optimizer: int
    gradients: int
    saved: dict[str, int]
    temporary: int
    communication: int = 0

    @property
    def step(self) -> int:
        """Memory that a step allocates and frees: all except weights and optimiser."""
        return self.gradients + sum(self.saved.values()) + self.temporary + self.communication

    @property
    def total(self) -> int:
        """The peak of all memory."""
        return sum(self.weights.values()) + self.optimizer + self.step


class AllocationCounter(TorchDispatchMode):
    """Count the storages that operations allocate while the mode is active.

    Attributes
    ----------
    live, peak : int
        Bytes that are allocated now, and the maximum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation, and count the storages of its results that are not storages of its arguments."""
        inputs = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in inputs and id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, id(storage))
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)


class KnownMasks(TorchFunctionMode):
    """Replace the content of fake tensors where a model needs it: selection by a mask, and checks of values.

    Parameters
    ----------
    counts : mapping
        Shape of a mask -> number of its True entries. For other shapes all entries, which needs most memory.
    """

    def __init__(self, counts: Mapping[tuple[int, ...], int]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Select as many entries as the mask has True ones, let checks pass, and run every other operation as it is."""
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            tensor, mask = args
            chosen = torch.zeros(self.counts.get(tuple(mask.shape), mask.numel()), dtype=torch.int64)
            return tensor.flatten(0, mask.dim() - 1)[chosen]
        if function in (Tensor.__bool__, torch.equal):  # "if wrong.any()", "if torch.equal(...)"
            return function is torch.equal
        return function(*args, **(kwargs or {}))


def estimate(model: AudioLanguageModel, batch: Batch, hparams: Mapping) -> Estimate:
    """Estimate the memory of an optimiser step on batches like this one.

    Parameters
    ----------
    model : AudioLanguageModel
        From `build_meta_model`. Its meta tensors are replaced by fake tensors.
    batch : Batch
        Real, on the CPU.
    hparams : mapping
        `precision`, `optimizer`, `grad_accumulation_factor`, and the blocks `llm` and `encoder`; for several
        `processes` also `parallel` and `cpu_offload`.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from audiolm_lite.adapters.identity import Identity
    >>> from audiolm_lite.data.batching import Item, collate
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> with torch.device("meta"):
    ...     model = AudioLanguageModel(Identity(8, 1, 8), LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)))
    >>> batch = collate([Item({"id": "a"}, [-1, 5, 6], [IGNORE, IGNORE, 6], features=torch.zeros(1, 1, 8))])
    >>> hparams = {"precision": "fp32", "optimizer": "adamw", "grad_accumulation_factor": 1, "llm": {}, "encoder": {}}
    >>> needed = estimate(model, batch, hparams)
    >>> needed.weights, needed.optimizer, needed.gradients
    ({'adapter': 288, 'LLM': 2912}, 6400, 3200)
    """
    weights, communication = weight_bytes(model, hparams), communication_bytes(model, hparams)
    fraction = sharded_fraction(hparams)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    sharded_gradients = round(fraction * gradients)
    accumulates = hparams["grad_accumulation_factor"] > 1
    if not accumulates:  # FSDP2 keeps gradients unsharded between the batches of a window
        gradients = sharded_gradients
    fake = detect_fake_mode(tuple(model.parameters())) or FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(model, fake)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    allocations = AllocationCounter()
    dtype = AUTOCAST.get(hparams["precision"])
    supervised = (batch.labels[:, 1:] != IGNORE) & batch.attention_mask[:, :-1]
    counts = {tuple(supervised.shape): int(supervised.sum())}
    with fake, allocations:
        if accumulates:  # gradients of the previous batches
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        before = allocations.live
        parts = {"encoder": model.encoder, "adapter": model.adapter}
        autocast = nullcontext() if dtype is None else torch.autocast("cpu", dtype, cache_enabled=False)
        with KnownMasks(counts), _growth_of(parts, allocations) as saved, autocast:
            loss = model(batch).total
        saved["LLM and loss"] = allocations.live - before - sum(saved.values())
        with nullcontext() if accumulates or fraction == 1 else shard_gradients(trained, fraction):
            loss.backward()
        for parameter in trained:
            parameter.grad = None
    inputs = sum(tensor.nbytes for tensor in vars(batch).values() if isinstance(tensor, Tensor))
    activations = sum(saved.values())
    # The optimiser's temporary tensors (one denominator per parameter) exist after the activations are freed, and next
    # to DDP's buckets, but not next to the parameters that FSDP2 gathers.
    denominators = 0 if hparams["optimizer"].endswith("8bit") else sharded_gradients
    optimizer_peak = sharded_gradients + denominators + (communication if fraction == 1 else 0)
    peak = max(allocations.peak + communication, optimizer_peak)
    return Estimate(
        weights=weights,
        optimizer=round(fraction * optimizer_bytes(model, hparams["optimizer"])),
        gradients=gradients,
        saved={"batch": inputs, **saved},
        temporary=peak - activations - gradients - communication + _dequantised_layer(model, hparams),
        communication=communication,
    )


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer on the meta device by a fake one on the CPU; tied weights stay tied.

    Examples
    --------
    >>> layer = nn.Linear(2, 3, device="meta")
    >>> make_fake(layer, FakeTensorMode())
    >>> layer.weight.device, layer.weight.shape
    (device(type='cpu'), torch.Size([3, 2]))
    """
    replaced: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
                    continue
                if id(tensor) not in replaced:
                    with mode:
                        new = torch.empty(tensor.shape, dtype=tensor.dtype)
                        if isinstance(tensor, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    replaced[id(tensor)] = new
                tensors[name] = replaced[id(tensor)]


@contextmanager
def _growth_of(parts: Mapping[str, nn.Module | None], allocations: AllocationCounter) -> Iterator[dict[str, int]]:
    """Bytes that the forward pass of each part allocates and does not free."""
    growth: dict[str, int] = {}
    hooks = []
    for name, part in parts.items():
        if part is not None:
            growth[name] = 0

            def begin(*_: object, name: str = name) -> None:
                growth[name] -= allocations.live

            def end(*_: object, name: str = name) -> None:
                growth[name] += allocations.live

            hooks += [part.register_forward_pre_hook(begin), part.register_forward_hook(end)]
    try:
        yield growth
    finally:
        for hook in hooks:
            hook.remove()


def _dequantised_layer(model: AudioLanguageModel, hparams: Mapping) -> int:
    """Bytes of the largest linear layer of a 4-bit LLM, which is dequantised for the computation."""
    if hparams["llm"].get("quantization") != "4bit":
        return 0
    linear = [m for m in model.llm.modules() if isinstance(m, nn.Linear) and m is not model.llm.get_output_embeddings()]
    return max(layer.weight.nbytes for layer in linear)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
