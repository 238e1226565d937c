"""Backends: the same `prefill` and `decode_step`, run by plain PyTorch or compiled.

========  =============================================================================================================
eager     plain PyTorch
inductor  `torch.compile` in this process; on CUDA, single steps are replayed as a CUDA graph
aoti      AOTInductor: compiled once into two `.pt2` files, which later processes load within a second
cpu       one C++ step for Llama-like LLMs on a CPU (see `deploy.cpu`), with a packed copy of the weights; it gives the
          tokens of float32. cpu-int8 and cpu-int4 have smaller weights, cpu-bf16 and cpu-f32 one format for all
========  =============================================================================================================

Both compilers of PyTorch start from the same two exported graphs, one for the prompt with a dynamic length and one for
a single token, so that each gets kernels for its own shapes. The cache is an argument that the graphs change in place.
The weights are those of the live model: a `.pt2` contains code only, is valid for any weights of these shapes, and
needs no second copy of them in memory.

A `.pt2` and the library of the C++ step are native code. Commands store them in and load them from the user's own cache
folder only, which AUDIOLM_LITE_CACHE moves: never a folder of results or of a model, which may be shared.
"""

import hashlib
import json
import logging
import platform
import sysconfig
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from audiolm_lite.config.errors import did_you_mean
from audiolm_lite.decoding.backend import Backend, eager_backend
from audiolm_lite.decoding.state import TRACED_FILES, DecodeState, decode_step, prefill
from audiolm_lite.deploy.cpu.backend import BACKENDS, cpu_functions
from audiolm_lite.deploy.cpu.model import CpuModel
from audiolm_lite.deploy.machine import BackendError, machine_facts, missing_compiler
from audiolm_lite.modeling.lora import is_quantized
from audiolm_lite.storage import cache
from audiolm_lite.storage.atomic import atomic_folder, write_text
from audiolm_lite.storage.hashes import sha256_of

logger = logging.getLogger(__name__)

# "best" times so many tokens of every candidate, after the prompt and as many untimed ones.
TIMED_TOKENS = 12


def available_backends(device: str = "cpu") -> dict[str, str | None]:
    """Find out which backends can be used on this machine.

    Parameters
    ----------
    device : str
        Device of the model, for example "cpu" or "cuda:0".

    Returns
    -------
    dict
        Name of each backend -> None, or the reason why it cannot be used and what to install.

    Examples
    --------
    >>> print(available_backends()["eager"])
    None
    """
    kind = torch.device(device).type
    compiler = missing_compiler() if kind in ("cpu", "cuda") else f"it does not compile for {kind}; use eager"
    missing = f"no Python.h for Python {platform.python_version()}; install "
    missing += "python3-dev (Debian, Ubuntu) or python3-devel"
    headers = None if Path(sysconfig.get_path("include"), "Python.h").exists() else missing
    cuda = kind == "cuda"
    if cuda and compiler is None and find_spec("triton") is None:
        compiler = "triton is not installed; pip install triton"
    # Inductor builds Python extensions. AOTInductor does not, except for the launchers of Triton kernels.
    reasons = {"eager": None, "inductor": compiler or headers, "aoti": compiler or (headers if cuda else None)}
    elsewhere = None if kind == "cpu" else f"the model is on {device}, not on a CPU"
    return {**reasons, **dict.fromkeys(BACKENDS, elsewhere or compiler)}


def make_backend(
    name: str, llm: nn.Module, batch_size: int, max_length: int, cache_folder: str | Path | None = None
) -> Backend:
    """Prepare an LLM for generation, and compile it if the backend requires it.

    Parameters
    ----------
    name : str
        "eager", "inductor", "aoti", "cpu" or another of `deploy.cpu.backend.BACKENDS`; or "best": the fastest of the
        first four for this LLM on this machine, measured over a few tokens. On a CPU only "cpu" is compared with eager
        where it can run the LLM, and "inductor" is left out where "aoti" works, because both compile the same code.
    llm : nn.Module
        Causal language model in eval mode, on its device, in its dtype; it is not changed. An LLM with LoRA is compiled
        with its products; `AudioLM` and the commands merge it first (see `modeling.lora`), for every backend.
    batch_size : int
        Rows of the compiled code. Smaller batches run too, at the cost of this size. "eager" and "cpu" take batches of
        any size.
    max_length : int
        Capacity in tokens: prompt and answer together. "eager" and "cpu" take any length.
    cache_folder : path, optional
        Where "aoti" stores its packages, each in a folder named by a fingerprint of everything it depends on. By
        default `compiled` in `storage.cache.cache_folder()`, which all commands use. Nobody else may write to it.

    Returns
    -------
    Backend
        Ready to generate: compiled, loaded and run once.

    Raises
    ------
    ValueError
        Unknown name, a model in training mode, or one that the static cache does not support.
    BackendError
        The backend is not available on this machine, or cannot compile this LLM; the message says why.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
    >>> backend = make_backend("eager", llm, batch_size=1, max_length=16)
    >>> answers = backend.generate(torch.ones(1, 3, 8), torch.ones(1, 3), max_new_tokens=2, eos_ids=())
    >>> backend.name, [len(answer) for answer in answers]
    ('eager', [2])
    """
    reasons = available_backends(_device(llm).type)
    if name == "best":
        return _fastest(llm, batch_size, max_length, cache_folder)
    if name not in reasons:
        raise ValueError(f"make_backend: unknown backend {name!r}{did_you_mean(name, [*reasons, 'best'])}")
    if reasons[name]:
        raise BackendError(f"make_backend: {name} is not available: {reasons[name]}")
    if llm.training:
        raise ValueError("make_backend: the model is in training mode; call .eval() first")
    if name == "eager":
        return eager_backend(llm)
    if name in BACKENDS:
        started = time.perf_counter()
        functions = cpu_functions(CpuModel(llm, BACKENDS[name]), llm)
        return Backend(name, llm, *functions, state=None, compile_seconds=time.perf_counter() - started)
    if is_quantized(llm):  # torch.export cannot trace bitsandbytes' layers
        raise BackendError(f"make_backend: {name} cannot compile a quantised LLM; use eager, or load it in bfloat16")
    if hasattr(llm, "merge_and_unload"):
        logger.info("backend %s: the LoRA is not merged, but compiled as products of its own", name)
    started = time.perf_counter()
    state = DecodeState.allocate(llm, batch_size, max_length)
    if state.growing is not None:
        raise BackendError(f"make_backend: {name} cannot compile an LLM with recurrent layers; use eager")
    with torch.no_grad():
        prefill(llm, state, *_example_prompt(llm, state, 1))  # gives the cache the shapes of this LLM
        if name == "inductor":
            run_prefill, run_step = _compile_inductor(llm, state)
        else:
            folder = cache.cache_folder() / "compiled" if cache_folder is None else Path(cache_folder)
            run_prefill, run_step = _compile_aoti(llm, state, folder)
    backend = Backend(name, llm, *_with_checks(llm, state, run_prefill, run_step), state, 0.0)
    with torch.no_grad():  # inductor compiles at the first call; both load their kernels at the first call
        for length in (2, min(3, max_length)):
            backend.prefill(llm, state, *_example_prompt(llm, state, length))
        for _ in range(3):  # CUDA graphs: run, record, replay
            state.position.zero_()
            backend.decode_step(llm, state, torch.zeros_like(state.position))
    return Backend(name, llm, backend.prefill, backend.decode_step, state, time.perf_counter() - started)


def _fastest(llm: nn.Module, batch_size: int, max_length: int, cache_folder: str | Path | None) -> Backend:
    """Make every backend that works here, time it, log the figures, and return the fastest."""
    made: list[tuple[float, Backend]] = []
    for name in ("eager", "cpu", "aoti", "inductor"):
        names = [backend.name for _, backend in made]
        if _device(llm).type == "cpu" and (
            ("cpu" in names and name in ("aoti", "inductor")) or ("aoti" in names and name == "inductor")
        ):
            continue
        try:
            backend = make_backend(name, llm, batch_size, max_length, cache_folder)
        except BackendError as error:
            logger.info("backend best: %s", error)
            continue
        made.append((milliseconds_per_token(backend, batch_size, max_length), backend))
    made.sort(key=lambda entry: entry[0])
    times = ", ".join(f"{backend.name} {time:.2f} ms" for time, backend in made)
    logger.info("backend best: %s per token; takes %s", times, made[0][1].name)
    return made[0][1]


@torch.no_grad()
def milliseconds_per_token(backend: Backend, batch_size: int, max_length: int) -> float:
    """Median time of a decoding step of a batch in ms, over a few tokens after a short prompt.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> milliseconds_per_token(eager_backend(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()), 1, 40) > 0
    True
    """
    state = backend.state or DecodeState.allocate(backend.llm, batch_size, max_length)
    length = max(1, min(8, max_length - 1))
    token = backend.prefill(backend.llm, state, *_example_prompt(backend.llm, state, length)).argmax(-1)
    times = []
    for _ in range(max(1, min(2 * TIMED_TOKENS, max_length - length))):
        started = time.perf_counter()
        token = backend.decode_step(backend.llm, state, token).argmax(-1)
        token.tolist()  # waits for the device, as an interactive answer does
        times.append(1e3 * (time.perf_counter() - started))
    return median(times[-TIMED_TOKENS:])


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


def _compile_inductor(llm: nn.Module, state: DecodeState) -> tuple[Callable, Callable]:
    # Compiling the graphs, not the functions, gives every backend its own compile cache and few guards to check per
    # token. Decomposed because Dynamo cannot trace the autocast regions of transformers 4.57 a second time.
    graphs = {name: graph.run_decompositions({}) for name, graph in _export(llm, state).items()}
    run_prefill = torch.compile(graphs["prefill"].module(), fullgraph=True)
    # CUDA graphs write to the cache in place only if its address is marked as static.
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


def _compile_aoti(llm: nn.Module, state: DecodeState, cache_folder: Path) -> tuple[Callable, Callable]:
    key = _fingerprint(llm, state)
    folder = cache_folder / hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    if not folder.exists():
        try:
            with atomic_folder(folder) as unfinished:
                for function, graph in _export(llm, state).items():
                    torch._inductor.aoti_compile_and_package(
                        graph,
                        package_path=str(unfinished / f"{function}.pt2"),
                        inductor_configs={"aot_inductor.package_constants_in_so": False},
                    )
                text = json.dumps(key, indent=1, sort_keys=True, default=str)
                write_text(unfinished / "fingerprint.json", text + "\n")
        except OSError:
            if not folder.exists():  # otherwise another process has finished the same compilation first
                raise
    # "llm." is the attribute under which the exported modules have the model.
    tensors = {f"llm.{name}": tensor for name, tensor in _tensors(llm).items()}
    return _load(folder / "prefill.pt2", tensors), _load(folder / "decode_step.pt2", tensors)


def _load(package: Path, tensors: dict[str, Tensor]) -> Callable:
    model = torch._inductor.aoti_load_package(str(package))
    weights = {name: tensors[name].detach() for name in model.get_constant_fqns()}
    model.load_constants(weights, check_full_update=True, user_managed=True)
    # The package has plain pointers to the weights, so the function's closure keeps the tensors alive.
    return lambda *arguments, _weights=weights: model(*arguments)


def _with_checks(
    llm: nn.Module, state: DecodeState, run_prefill: Callable, run_step: Callable
) -> tuple[Callable, Callable]:
    """Functions with the signatures of `prefill` and `decode_step` that check their arguments.

    Compiled code does not check them and would read memory outside of its tensors.
    """
    batch, hidden = state.batch_size, llm.get_input_embeddings().embedding_dim
    like = state.keys[0]

    def check(given_llm: nn.Module, given_state: DecodeState, **tensors: tuple) -> None:
        if given_llm is not llm:
            raise ValueError("this backend was compiled for another model; make one for this model")
        if given_state is not state:
            raise ValueError("this backend was compiled for its own cache; pass state=backend.state")
        for name, (tensor, shape, dtype) in tensors.items():
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device != like.device:
                raise ValueError(
                    f"{name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}; this backend was compiled for "
                    f"{list(shape)} {dtype} on {like.device}"
                )

    def compiled_prefill(
        given_llm: nn.Module, given_state: DecodeState, inputs_embeds: Tensor, attention_mask: Tensor
    ) -> Tensor:
        if inputs_embeds.shape[1] == 1:  # the graph starts at length 2; padding after the text has no effect
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
    shape, embedding = (state.batch_size, length), llm.get_input_embeddings()
    embeds = embedding.weight.new_zeros(*shape, embedding.embedding_dim)
    return embeds, torch.ones(shape, dtype=torch.bool, device=embeds.device)


def _fingerprint(llm: nn.Module, state: DecodeState) -> dict:
    """Everything that the compiled code depends on: architecture, shapes, this library, torch, the machine.

    The weights are not part of it.
    """
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
        "source": [sha256_of(file) for file in (*TRACED_FILES, __file__)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": machine_facts(_device(llm)),
    }


def _tensors(llm: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones have several names."""
    return {**dict(llm.named_parameters(remove_duplicate=False)), **dict(llm.named_buffers(remove_duplicate=False))}


def _device(llm: nn.Module) -> torch.device:
    return llm.get_input_embeddings().weight.device
