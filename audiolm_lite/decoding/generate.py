"""The generation loop: greedy or sampled tokens from any pair of `prefill` and `decode_step`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audiolm_lite.config.precision import float64_device
from audiolm_lite.decoding.repetition import NO_TOKEN, WINDOW, ban_repeated_ngrams, is_looping, penalise
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill

# Checking whether every row has finished makes the host wait for the accelerator; it happens once per so many tokens.
TOKENS_PER_SYNC = 8


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the steps and their order are those of transformers' logits processors.

    Attributes
    ----------
    temperature : float
        Divides the logits. 0 takes the most likely token (after `repetition_penalty` and `no_repeat_ngram_size`).
    top_k : int
        Keep the k most likely tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2020).
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens that the row already has (Keskar et al. 2019).
    no_repeat_ngram_size : int
        Tokens that would complete an n-gram of this size that the row already has are never taken; 0: all may be.
    seed : int or sequence of int
        Row r draws random numbers from its own generator with seed `seed + r`, or `seed[r]`. With one seed per row, a
        row's answer does not depend on the batch. Numbers are drawn on the CPU and are equal on all devices and
        backends.

    Raises
    ------
    ValueError
        A value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, "at least 0"),
        }
        for field, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"Sampling: {field} must be {rule}, not {getattr(self, field)}")


@torch.no_grad()
def generate(
    llm: nn.Module,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int | Sequence[int],
    eos_ids: int | Sequence[int],
    sampling: Sampling | None = None,
    choose: Callable[[Tensor, Tensor], Tensor] | None = None,
    stop_loops: bool = False,
    prefill: Callable = prefill,
    decode_step: Callable = decode_step,
    state: DecodeState | None = None,
) -> list[list[int]]:
    """Continue each prompt until an end token or its limit; a row's tokens do not depend on the other rows.

    Parameters
    ----------
    llm : nn.Module
        Causal language model in eval mode.
    inputs_embeds : Tensor
        [B, S, H] prompt embeddings.
    attention_mask : Tensor
        [B, S], true at the prompt's own positions; padded on either side.
    max_new_tokens : int or sequence of int
        Maximum number of tokens of every row, or of each.
    eos_ids : int or sequence of int
        Tokens that end a row; empty: every row gets `max_new_tokens`.
    sampling : Sampling, optional
        None is greedy.
    choose : callable, optional
        In place of `sampling`: (logits [B, V], tokens [B, N] so far) -> next tokens [B], such as
        `joint_ctc.JointChooser`. It is called once per token.
    stop_loops : bool
        Stop when every row has ended or repeats itself (see `decoding.repetition`). Rows are returned with their
        repeats; `repetition.cut_loop` removes them.
    prefill, decode_step : callable
        The eager functions of `audiolm_lite.decoding.state`, or the compiled ones of a backend.
    state : DecodeState, optional
        Cache to reuse; a compiled backend needs its own. It may have more rows than the batch: the spare rows are
        computed and discarded. By default, a cache of the required size is allocated.

    Returns
    -------
    list of list of int
        Generated tokens of each row, without the end token.

    Raises
    ------
    ValueError
        A row is empty, the model is in training mode, the batch does not fit the cache, or both `sampling` and `choose`
        are given.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes, initializer_range=0.0)).eval().requires_grad_(False)
    >>> llm.model.embed_tokens.weight.data = torch.eye(8)
    >>> llm.lm_head.weight.data = torch.eye(8).roll(1, 0)  # after token n, the most likely one is n + 1
    >>> prompt = torch.eye(8)[None, 3:5]  # embeddings of tokens 3 and 4
    >>> generate(llm, prompt, torch.ones(1, 2), max_new_tokens=5, eos_ids=7)
    [[5, 6]]
    """
    batch, length, _ = inputs_embeds.shape
    if llm.training:
        raise ValueError(
            "generate: the model is in training mode, in which dropout changes its answers; call .eval() first"
        )
    if sampling is not None and choose is not None:
        raise ValueError("generate: sampling and choose exclude each other; give one of them")
    limits = token_limits("generate", max_new_tokens, batch)
    steps = max(limits)
    longest, shortest = attention_mask.bool().sum(1).aminmax()[::-1]
    if int(shortest) == 0:
        raise ValueError("generate: a row of attention_mask is empty; every prompt needs at least one token")
    needed = int(longest) + steps - 1  # the last token is not an input
    if state is None:
        state = DecodeState.allocate(llm, batch, max(length, needed))
    if batch > state.batch_size or max(length, needed) > state.max_length:
        raise ValueError(
            f"generate: {batch} rows of up to {max(length, needed)} tokens do not fit a cache of "
            f"{state.batch_size} rows of {state.max_length}; lower the batch size or max_new_tokens, or make a "
            "larger backend"
        )
    rows = torch.arange(state.batch_size, device=inputs_embeds.device).clamp(max=batch - 1)  # spare rows copy the last
    logits = prefill(llm, state, inputs_embeds[rows], attention_mask[rows])[:batch]

    device = logits.device
    eos = torch.tensor([eos_ids] if isinstance(eos_ids, int) else list(eos_ids), dtype=torch.int64, device=device)
    choose = choose or _Chooser(sampling, batch, logits.shape[1], steps, device)
    # The columns before the answers let every step look back at as many tokens.
    tokens = torch.full((batch, WINDOW + steps), NO_TOKEN, dtype=torch.int64, device=device)
    limit = torch.tensor(limits, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    every = 1 if device.type == "cpu" else TOKENS_PER_SYNC
    for step in range(steps):
        token = choose(logits, tokens[:, WINDOW : WINDOW + step])
        tokens[:, WINDOW + step] = token
        finished |= torch.isin(token, eos) | (limit <= step + 1)
        if stop_loops:
            finished |= is_looping(tokens[:, step + 1 : WINDOW + step + 1])
        if step + 1 == steps or ((step + 1) % every == 0 and bool(finished.all())):
            break
        # A finished row continues, because shapes are fixed; its tokens after the end are cut off below.
        logits = decode_step(llm, state, token[rows])[:batch]

    ends = set(eos.tolist())
    answers = []
    for row, most in zip(tokens[:, WINDOW : WINDOW + step + 1].tolist(), limits):
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: min(end, most)])
    return answers


def token_limits(where: str, max_new_tokens: int | Sequence[int], batch: int) -> list[int]:
    """Return the limit of each row, after a check; `where` names the caller in the message.

    Raises
    ------
    ValueError
        A limit below 1, or not one limit per row.

    Examples
    --------
    >>> token_limits("generate", 5, batch=2), token_limits("generate", [5, 9], batch=2)
    ([5, 5], [5, 9])
    """
    limits = [max_new_tokens] * batch if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != batch:
        raise ValueError(f"{where}: {len(limits)} limits for a batch of {batch} rows; give one limit per row")
    if min(limits) < 1:
        raise ValueError(f"{where}: max_new_tokens must be at least 1, not {min(limits)}")
    return limits


class _Chooser:
    """Chooses the next tokens [B] from logits [B, V] without waiting for the device."""

    def __init__(self, sampling: Sampling | None, batch: int, vocabulary: int, steps: int, device: torch.device):
        self.sampling = sampling
        if sampling is None:
            return
        seeds = [sampling.seed + row for row in range(batch)] if isinstance(sampling.seed, int) else sampling.seed
        if len(seeds) != batch:
            raise ValueError(f"Sampling: {len(seeds)} seeds for a batch of {batch} rows; give one per row")
        draws = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.draws = torch.stack(draws).to(float64_device(device)).double()  # [B, steps] in [0, 1)
        self.seen = torch.zeros(batch, vocabulary, dtype=torch.bool, device=device)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """logits [B, V] after the rows' tokens [B, N] so far."""
        if self.sampling is None:
            return logits.argmax(-1)
        scores = ban_repeated_ngrams(logits, tokens, self.sampling.no_repeat_ngram_size)
        scores = process_logits(scores, self.seen, self.sampling)
        if self.sampling.temperature == 0:
            token = scores.argmax(-1)
        else:
            # Inverse of the cumulative distribution: one random number per token, so that rows are independent.
            cumulative = scores.to(self.draws.device).double().softmax(-1).cumsum(-1)
            threshold = self.draws[:, tokens.shape[1], None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, threshold, right=True)[:, 0].to(logits.device)
        self.seen.scatter_(1, token[:, None], True)
        return token


def process_logits(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Apply repetition penalty, temperature, top-k and top-p, in this order.

    Parameters
    ----------
    logits : Tensor
        [B, V] float.
    seen : Tensor
        [B, V] bool, true for tokens that the row already has.
    sampling : Sampling
        The settings.

    Returns
    -------
    Tensor
        [B, V] logits; removed tokens have -inf.

    Examples
    --------
    >>> logits, seen = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, False, False]])
    >>> process_logits(logits, seen, Sampling(repetition_penalty=4.0, top_k=2)).tolist()
    [[0.5, 1.0, -inf]]
    """
    logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.top_k:
        smallest_kept = logits.topk(min(sampling.top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    if sampling.top_p < 1:
        ascending, order = logits.sort(-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        removed[:, -1] = False
        logits = logits.masked_fill(removed.scatter(1, order, removed), float("-inf"))
    return logits
