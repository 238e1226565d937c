"""Latency of a model: time to first token, time per output token, peak memory, and equality with eager answers.

Protocol, for each of `runs` timed answers after `warmups` untimed ones:

- Time to first token (TTFT): from the audio in memory to the first token on the host. It includes encoder, adapter and
  splice (the caller's function), prefill and argmax.
- Time per output token (TPOT): the time of the remaining tokens divided by their number. Each is decoded through the
  key/value cache and copied to the host before the next, as in an interactive answer. End tokens are ignored, so all
  runs have the same length.
- The clock is read when the device is idle (`torch.accelerator.synchronize`).
- The eager functions are timed in the same way on the same inputs, and the answers are compared token by token.
"""

import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from statistics import median
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.generate import generate
from audiolm_lite.decoding.state import DecodeState
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.storage.process_memory import KIND, PeakMemory

MEGABYTE = 1e6
Prompt = Callable[[], tuple[Tensor, Tensor]]


@torch.no_grad()
def measure(
    backend: Backend,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int = 32,
    eos_ids: int | Sequence[int] = (),
    warmups: int = 3,
    runs: int = 20,
) -> dict:
    """Measure latency and peak memory of a backend, and compare its answers with eager ones.

    Parameters
    ----------
    backend : Backend
        From `make_backend`.
    prompts : sequence of callables
        Each runs everything before the LLM on one batch of audio and returns (inputs_embeds [B, S, H],
        attention_mask [B, S]). They are used in turn.
    new_tokens : int
        Tokens of a timed answer; at least 2.
    eos_ids : int or sequence of int
        Tokens that end an answer when answers are compared.
    warmups, runs : int
        Number of untimed and timed answers.

    Returns
    -------
    dict
        Flat, for JSON. `ttft_ms` and `tpot_ms` are medians over the runs, `*_p90` the 90th percentiles, `*_eager` the
        medians of the eager functions. `token_match` is the fraction of positions with the same token in the greedy
        answers of both to every prompt. `peak_memory_mb` (10^6 bytes) is measured in separate runs.
        `peak_memory_kind` is "cuda_allocated", tensors of this process on its GPU, weights included
        (`torch.cuda.max_memory_allocated`), or "process_without_mapped_files": anonymous and shared memory of this
        process (see `storage.process_memory`), sampled every 2 ms. `mapped_files_mb` are the resident pages of files,
        for example libraries and weights that are used in place. `memory_before_mb` is the value of `peak_memory_mb`
        just before those runs.

    Raises
    ------
    ValueError
        No prompt, no run or fewer than two new tokens, or a prompt that does not fit the backend's cache.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
    >>> prompt = torch.ones(1, 3, 8), torch.ones(1, 3)
    >>> result = measure(make_backend("eager", llm, 1, 5), [lambda: prompt], new_tokens=2, warmups=0, runs=1)
    >>> result["prompt_tokens"], result["token_match"], result["ttft_ms"] > 0
    (3, 1.0, True)
    """
    if new_tokens < 2 or runs < 1 or not prompts:
        raise ValueError("measure: give a prompt, at least one run and at least two new tokens")
    eager = make_backend("eager", backend.llm, 1, 1)
    ttft, tpot = _time(backend, prompts, new_tokens, warmups, runs)
    peak = _peak_memory(lambda: [_answer(backend, prompt, new_tokens) for prompt in prompts])
    ttft_eager, tpot_eager = (
        (ttft, tpot) if backend.name == "eager" else _time(eager, prompts, new_tokens, warmups, runs)
    )
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "eos_ids": eos_ids}
    answers = [backend.generate(*prompt(), **options) for prompt in prompts]
    expected = [generate(backend.llm, *prompt(), **options) for prompt in prompts]
    inputs_embeds, attention_mask = prompts[0]()
    weight = backend.llm.get_input_embeddings().weight
    on_cuda = weight.is_cuda
    return {
        "backend": backend.name,
        "ttft_ms": median(ttft),
        "ttft_ms_p90": _p90(ttft),
        "ttft_ms_eager": median(ttft_eager),
        "tpot_ms": median(tpot),
        "tpot_ms_p90": _p90(tpot),
        "tpot_ms_eager": median(tpot_eager),
        "token_match": _token_match(sum(answers, []), sum(expected, [])),
        **peak,
        "compile_seconds": backend.compile_seconds,
        "batch_size": inputs_embeds.shape[0],
        "prompt_tokens": int(attention_mask.sum(1).max()),
        "prompts": len(prompts),
        "new_tokens": new_tokens,
        "warmups": warmups,
        "runs": runs,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(weight.device) if on_cuda else weight.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _time(backend: Backend, prompts: Sequence[Prompt], new_tokens: int, warmups: int, runs: int) -> tuple[list, list]:
    """TTFT and TPOT in ms of each timed run."""
    timings = [_answer(backend, prompts[run % len(prompts)], new_tokens) for run in range(warmups + runs)]
    ttft, tpot = zip(*timings[warmups:])
    return list(ttft), list(tpot)


def _answer(backend: Backend, prompt: Prompt, new_tokens: int) -> tuple[float, float]:
    """One greedy answer: (TTFT, TPOT) in ms."""
    llm = backend.llm
    _synchronise(llm)
    started = time.perf_counter()
    inputs_embeds, attention_mask = prompt()
    batch, length, _ = inputs_embeds.shape
    state = backend.state or DecodeState.allocate(llm, batch, length + new_tokens)
    if batch != state.batch_size or length + new_tokens > state.max_length:
        raise ValueError(
            f"measure: {batch} rows of {length} + {new_tokens} tokens on a backend made for {state.batch_size} rows "
            f"of {state.max_length} tokens; make one for exactly this batch size and at least this length"
        )
    token = backend.prefill(llm, state, inputs_embeds, attention_mask).argmax(-1)
    token.tolist()
    _synchronise(llm)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = backend.decode_step(llm, state, token).argmax(-1)
        token.tolist()
    _synchronise(llm)
    ended = time.perf_counter()
    return 1e3 * (first - started), 1e3 * (ended - first) / (new_tokens - 1)


def _synchronise(llm: torch.nn.Module) -> None:
    device = llm.get_input_embeddings().weight.device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(work: Callable) -> dict:
    """Peak memory while `work` runs; separate from the timed runs, because sampling takes time."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peak, kind, mapped = torch.cuda.max_memory_allocated(), "cuda_allocated", {}
    else:
        with PeakMemory(interval=0.002) as memory:
            work()
        before, peak, kind = memory.before, memory.peak, KIND
        mapped = {"mapped_files_mb": memory.mapped / MEGABYTE}
    measured = {"peak_memory_mb": peak / MEGABYTE, "memory_before_mb": before / MEGABYTE}
    return {**measured, **mapped, "peak_memory_kind": kind}


def _p90(values: list[float]) -> float:
    """90th percentile: the smallest measured value that at least 90 % of the values do not exceed."""
    return sorted(values)[-(-9 * len(values) // 10) - 1]


def _token_match(answers: list[list[int]], expected: list[list[int]]) -> float:
    """Fraction of equal positions over all rows; a position that only one of the two has counts as different."""
    pairs = [pair for rows in zip(answers, expected) for pair in zip_longest(*rows)]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0
