"""Back ends: the same `prefill` and `decode_step`, run as they are or compiled.

========  =============================================================================================================
eager     plain PyTorch
inductor  `torch.compile` in this process; on CUDA, single steps are replayed as a CUDA graph
aoti      AOTInductor: compiled once into a pair of `.pt2` files that later processes load in a second
========  =============================================================================================================

Both compilers take the same two exported graphs, one for the prompt with a dynamic length and one for a single token,
so that each gets kernels of its own shape. The cache is an argument that they change in place, and the weights are
those of the live model: a `.pt2` holds code alone, is valid for any weights of that shape, and costs no second copy in
memory.

A `.pt2` is native code. It belongs into the user's own cache folder, never into a model that is shared.

A further module to compile (the audio encoder is the next) takes the same way: `torch.export` with its time axis
dynamic, then `_run_inductor` or `_run_aoti`; a further compiler is one more function like these two.
"""

import hashlib
import inspect
import json
import os
import platform
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from audiolm_lite.decoding.backend import Backend, eager_backend
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiolm_lite" / "compiled"


def available_backends(device: str = "cpu") -> dict[str, str | None]:
    """Every back end's name -> None, or why it cannot be used on this machine for `device` and what to install."""
    cuda = torch.device(device).type == "cuda"
    compiler = _missing_compiler()
    headers = None
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        headers = (
            f"no Python.h for Python {platform.python_version()}; install python3-dev (Debian, Ubuntu) or python3-devel"
        )
    if cuda and compiler is None and find_spec("triton") is None:
        compiler = "triton is not installed; pip install triton"
    # Inductor's kernels are Python extensions; AOTInductor's are not, except for what Triton builds to launch its own.
    return {"eager": None, "inductor": compiler or headers, "aoti": compiler or (headers if cuda else None)}


def make_backend(
    name: str, llm: nn.Module, batch_size: int, max_length: int, cache_folder: str | Path = DEFAULT_CACHE
) -> Backend:
    """Prepare `llm` for generation, compiling where the back end asks for it.

    Parameters
    ----------
    name : str
        "eager", "inductor" or "aoti".
    llm : nn.Module
        Causal language model in eval mode, on its device, in its dtype. Merge a LoRA first (`llm.merge_and_unload()`),
        which saves two small products a layer; an unmerged one compiles as well.
    batch_size : int
        Rows compiled for. Smaller batches run too, at this size's cost.
    max_length : int
        Capacity in tokens: prompt and answer together.
    cache_folder : path
        Where "aoti" keeps its packages, one folder each, named by a fingerprint of all they depend on.

    Raises
    ------
    ValueError
        Unknown name, a model in training mode, or one that the static cache does not support.
    RuntimeError
        The back end is not available here; the message says what is missing.
    """
    reasons = available_backends(_device(llm).type)
    if name not in reasons:
        raise ValueError(f"make_backend: unknown back end {name!r}; choose one of {', '.join(reasons)}")
    if reasons[name]:
        raise RuntimeError(f"make_backend: {name} is not available: {reasons[name]}")
    if llm.training:
        raise ValueError("make_backend: the model is in training mode; call .eval() first")
    if name == "eager":
        return eager_backend(llm)
    started = time.perf_counter()
    state = DecodeState.allocate(llm, batch_size, max_length)
    with torch.no_grad():
        if name == "inductor":
            run_prefill, run_step = _run_inductor(llm, state)
        else:
            run_prefill, run_step = _run_aoti(llm, state, Path(cache_folder))
    backend = Backend(name, llm, *_guarded(llm, state, run_prefill, run_step), state, 0.0)
    with torch.no_grad():  # inductor compiles at the first call; kernels are loaded at the first call of either
        for length in (2, min(3, max_length)):
            backend.prefill(llm, state, *_example_prompt(llm, state, length))
        for _ in range(3):  # CUDA graphs: run, record, replay
            state.position.zero_()
            backend.decode_step(llm, state, torch.zeros_like(state.position))
    return Backend(name, llm, backend.prefill, backend.decode_step, state, time.perf_counter() - started)


class _Prefill(nn.Module):
    """`prefill` as a module over flat tensors, the form that `torch.export` takes."""

    def __init__(self, llm: nn.Module):
        super().__init__()
        self.llm = llm

    def forward(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        position: Tensor,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        return prefill(self.llm, DecodeState(keys, values, position), inputs_embeds, attention_mask)


class _DecodeStep(nn.Module):
    """`decode_step` as a module over flat tensors."""

    def __init__(self, llm: nn.Module):
        super().__init__()
        self.llm = llm

    def forward(self, keys: list[Tensor], values: list[Tensor], position: Tensor, token: Tensor) -> Tensor:
        return decode_step(self.llm, DecodeState(keys, values, position), token)


def _export(llm: nn.Module, state: DecodeState) -> dict[str, ExportedProgram]:
    """Both functions as graphs: batch and capacity fixed, prompt length 2..C (1 would be specialised by the tracer)."""
    cache = (state.keys, state.values, state.position)
    fixed = ([None] * len(state.keys), [None] * len(state.values), None)
    length = Dim("length", min=2, max=state.max_length)
    example = _example_prompt(llm, state, min(3, state.max_length))
    return {
        "prefill": torch.export.export(
            _Prefill(llm), (*cache, *example), dynamic_shapes=(*fixed, {1: length}, {1: length})
        ),
        "decode_step": torch.export.export(_DecodeStep(llm), (*cache, torch.zeros_like(state.position))),
    }


def _run_inductor(llm: nn.Module, state: DecodeState) -> tuple[Callable, Callable]:
    # Compiling the graph rather than the functions gives every back end a compile cache of its own, and few guards to
    # check a token. Decomposed because Dynamo does not trace the autocast regions of transformers 4.57 again.
    graphs = {name: graph.run_decompositions({}) for name, graph in _export(llm, state).items()}
    run_prefill = torch.compile(graphs["prefill"].module(), fullgraph=True)
    # CUDA graphs may write to the cache in place only if told that it stays where it is.
    for tensor in (*state.keys, *state.values, state.position):
        torch._dynamo.mark_static_address(tensor)
    mode = "reduce-overhead" if state.position.is_cuda else None
    run_step = torch.compile(graphs["decode_step"].module(), fullgraph=True, dynamic=False, mode=mode)

    def dynamic_prefill(
        keys: list[Tensor], values: list[Tensor], position: Tensor, inputs_embeds: Tensor, attention_mask: Tensor
    ) -> Tensor:
        torch._dynamo.mark_dynamic(inputs_embeds, 1, min=2, max=state.max_length)
        torch._dynamo.mark_dynamic(attention_mask, 1, min=2, max=state.max_length)
        return run_prefill(keys, values, position, inputs_embeds, attention_mask)

    return dynamic_prefill, run_step


def _run_aoti(llm: nn.Module, state: DecodeState, cache_folder: Path) -> tuple[Callable, Callable]:
    key = _fingerprint(llm, state)
    folder = cache_folder / hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    if not folder.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cache_folder))
        try:
            for part, graph in _export(llm, state).items():
                torch._inductor.aoti_compile_and_package(
                    graph,
                    package_path=str(unfinished / f"{part}.pt2"),
                    inductor_configs={"aot_inductor.package_constants_in_so": False},
                )
            (unfinished / "fingerprint.json").write_text(json.dumps(key, indent=1, sort_keys=True, default=str))
            if not folder.exists():  # another process may have been faster
                os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    # "llm." is the attribute that the exported modules keep the model under.
    tensors = {f"llm.{name}": tensor for name, tensor in _tensors(llm).items()}
    return _load(folder / "prefill.pt2", tensors), _load(folder / "decode_step.pt2", tensors)


def _load(package: Path, tensors: dict[str, Tensor]) -> Callable:
    model = torch._inductor.aoti_load_package(str(package))
    weights = {name: tensors[name].detach() for name in model.get_constant_fqns()}
    model.load_constants(weights, check_full_update=True, user_managed=True)
    # The package keeps bare pointers: the function's closure keeps the tensors alive.
    return lambda *arguments, _weights=weights: model(*arguments)


def _guarded(
    llm: nn.Module, state: DecodeState, run_prefill: Callable, run_step: Callable
) -> tuple[Callable, Callable]:
    """The contract's signatures, with the checks that compiled code leaves out (it would read foreign memory)."""
    batch, hidden = state.batch_size, llm.get_input_embeddings().embedding_dim
    like = state.keys[0]

    def check(given_llm: nn.Module, given_state: DecodeState, **tensors: tuple) -> None:
        if given_llm is not llm:
            raise ValueError("this back end was compiled for another model; make one for this model")
        if given_state is not state:
            raise ValueError("this back end was compiled for its own cache; pass state=backend.state")
        for name, (tensor, shape, dtype) in tensors.items():
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != like.device:
                raise ValueError(
                    f"{name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}; this back end was compiled for "
                    f"{list(shape)} {dtype} on {like.device}"
                )

    def compiled_prefill(
        given_llm: nn.Module, given_state: DecodeState, inputs_embeds: Tensor, attention_mask: Tensor
    ) -> Tensor:
        if inputs_embeds.shape[1] == 1:  # the graph starts at 2; padding behind the text changes nothing
            inputs_embeds = nn.functional.pad(inputs_embeds, (0, 0, 0, 1))
            attention_mask = nn.functional.pad(attention_mask, (0, 1))
        length = min(inputs_embeds.shape[1], state.max_length)
        mask = attention_mask.bool()
        check(
            given_llm,
            given_state,
            inputs_embeds=(inputs_embeds, (batch, length, hidden), like.dtype),
            attention_mask=(mask, (batch, length), torch.bool),
        )
        return run_prefill(state.keys, state.values, state.position, inputs_embeds.contiguous(), mask.contiguous())

    def compiled_step(given_llm: nn.Module, given_state: DecodeState, token: Tensor) -> Tensor:
        check(given_llm, given_state, token=(token, (batch,), torch.int64))
        return run_step(state.keys, state.values, state.position, token.contiguous())

    return compiled_prefill, compiled_step


def _example_prompt(llm: nn.Module, state: DecodeState, length: int) -> tuple[Tensor, Tensor]:
    shape = (state.batch_size, length)
    embeds = state.keys[0].new_zeros(*shape, llm.get_input_embeddings().embedding_dim)
    return embeds, torch.ones(shape, dtype=torch.bool, device=embeds.device)


def _fingerprint(llm: nn.Module, state: DecodeState) -> dict:
    """All that the compiled code depends on: architecture, shapes, this library, torch, the machine. Not weights."""
    tensors = _tensors(llm)
    lora = {name: layer for name, layer in llm.named_modules() if isinstance(getattr(layer, "scaling", None), dict)}
    return {
        "config": {field: value for field, value in llm.config.to_dict().items() if field != "_name_or_path"},
        "lora": {
            name: [layer.scaling, list(layer.active_adapters), layer.merged, layer.disable_adapters]
            for name, layer in lora.items()
        },
        "tensors": {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()},
        # Inductor writes tensors of up to 8 numbers into the code as literals.
        "literals": {name: tensor.flatten().tolist() for name, tensor in tensors.items() if tensor.numel() <= 8},
        "batch_size": state.batch_size,
        "max_length": state.max_length,
        "source": [
            hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (inspect.getfile(DecodeState), __file__)
        ],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": _machine(_device(llm)),
    }


def _tensors(llm: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they go by (tied ones have several)."""
    return {**dict(llm.named_parameters(remove_duplicate=False)), **dict(llm.named_buffers(remove_duplicate=False))}


def _machine(device: torch.device) -> list[str]:
    """What native code is bound to: the GPU, the CPU's instruction set and the number of threads (all compiled in)."""
    about = [platform.system(), platform.machine(), str(torch.get_num_threads())]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        about += [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    if device.type == "cuda":
        about += [str(device), torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    return about


def _device(llm: nn.Module) -> torch.device:
    return llm.get_input_embeddings().weight.device


def _missing_compiler() -> str | None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler; install g++ (Debian, Ubuntu: apt install g++) or set CXX"
    return None
