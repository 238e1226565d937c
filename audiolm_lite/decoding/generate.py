"""The generation loop: greedy or sampled tokens from any pair of `prefill` and `decode_step`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audiolm_lite.decoding.state import DecodeState, decode_step, prefill

# Checking whether every row has finished makes the host wait for the accelerator; it happens once per so many tokens.
TOKENS_PER_SYNC = 8


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the steps and their order are those of transformers' logits processors.

    Attributes
    ----------
    temperature : float
        Divides the logits. 0 takes the most likely token (after the repetition penalty).
    top_k : int
        Keep the k most likely tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2020).
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens that the row already has (Keskar et al. 2019).
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
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
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
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    sampling: Sampling | None = None,
    prefill: Callable = prefill,
    decode_step: Callable = decode_step,
    state: DecodeState | None = None,
) -> list[list[int]]:
    """Continue each prompt until an end token or `max_new_tokens`; a row's tokens do not depend on the other rows.

    Parameters
    ----------
    llm : nn.Module
        Causal language model in eval mode.
    inputs_embeds : Tensor
        [B, S, H] prompt embeddings.
    attention_mask : Tensor
        [B, S], true at the prompt's own positions; padded on either side.
    max_new_tokens : int
        Maximum number of tokens per row.
    eos_ids : int or sequence of int
        Tokens that end a row; empty: every row gets `max_new_tokens`.
    sampling : Sampling, optional
        None is greedy.
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
        A row is empty, the model is in training mode, or the batch does not fit the cache.

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
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be at least 1, not {max_new_tokens}")
    longest, shortest = attention_mask.bool().sum(1).aminmax()[::-1]
    if int(shortest) == 0:
        raise ValueError("generate: a row of attention_mask is empty; every prompt needs at least one token")
    needed = int(longest) + max_new_tokens - 1  # the last token is not an input
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
    choose = _Chooser(sampling, batch, logits.shape[1], max_new_tokens, device)
    tokens = torch.empty(batch, max_new_tokens, dtype=torch.int64, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    every = 1 if device.type == "cpu" else TOKENS_PER_SYNC
    for step in range(max_new_tokens):
        token = choose(logits, step)
        tokens[:, step] = token
        finished |= torch.isin(token, eos)
        if step + 1 == max_new_tokens or ((step + 1) % every == 0 and bool(finished.all())):
            break
        # A finished row continues, because shapes are fixed; its tokens after the end are cut off below.
        logits = decode_step(llm, state, token[rows])[:batch]

    ends = set(eos.tolist())
    answers = []
    for row in tokens[:, : step + 1].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers


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
        self.draws = torch.stack(draws).to(device=device, dtype=torch.float64)  # [B, steps] in [0, 1)
        self.seen = torch.zeros(batch, vocabulary, dtype=torch.bool, device=device)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        if self.sampling is None:
            return logits.argmax(-1)
        scores = process_logits(logits, self.seen, self.sampling)
        if self.sampling.temperature == 0:
            token = scores.argmax(-1)
        else:
            # Inverse of the cumulative distribution: one random number per token, so that rows are independent.
            cumulative = scores.double().softmax(-1).cumsum(-1)
            threshold = self.draws[:, step, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
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
    if sampling.repetition_penalty != 1:
        penalised = torch.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
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
