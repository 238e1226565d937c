"""Beam search over the static cache, with the scores and the stopping rule of transformers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from audiolm_lite.decoding.generate import token_limits
from audiolm_lite.decoding.repetition import NO_TOKEN, WINDOW, ban_repeated_ngrams, is_looping, penalise
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill

_NEVER = -1e9  # score of hypotheses that do not exist; finite, because differences of infinities are NaN


@torch.no_grad()
def beam_search(
    llm: nn.Module,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    *,
    beams: int,
    max_new_tokens: int | Sequence[int],
    eos_ids: int | Sequence[int],
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    stop_loops: bool = False,
    prefill: Callable = prefill,
    decode_step: Callable = decode_step,
    state: DecodeState | None = None,
) -> list[list[int]]:
    """Continue each prompt with the best of `beams` hypotheses; a row's tokens do not depend on the other rows.

    Parameters
    ----------
    llm : nn.Module
        Causal language model in eval mode.
    inputs_embeds, attention_mask : Tensor
        [B, S, H] prompt embeddings and [B, S], true at the prompt's own positions; padded on either side.
    beams : int
        Hypotheses K that are kept per prompt.
    max_new_tokens : int or sequence of int
        Maximum number of tokens of every answer, or of each.
    eos_ids : int or sequence of int
        Tokens that end an answer.
    length_penalty : float
        The log probability of a finished answer is divided by its length (with the end token) to this power. Values
        above 0 favour longer answers.
    repetition_penalty, no_repeat_ngram_size
        As in `Sampling`, on log probabilities as in transformers.
    stop_loops : bool
        A hypothesis that repeats itself (see `decoding.repetition`) is finished, as by an end token, with its repeats;
        `repetition.cut_loop` removes them.
    prefill, decode_step, state
        As in `generate`; a given state needs B * K rows.

    Returns
    -------
    list of list of int
        Best answer of each row, without the end token.

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
    >>> beam_search(llm, prompt, torch.ones(1, 2), beams=2, max_new_tokens=5, eos_ids=7)
    [[5, 6]]
    """
    batch, length, _ = inputs_embeds.shape
    if llm.training:
        raise ValueError("beam_search: the model is in training mode; call .eval() first")
    if beams < 2:
        raise ValueError(f"beam_search: {beams} beams; give at least 2, or use generate")
    limits = token_limits("beam_search", max_new_tokens, batch)
    steps = max(limits)
    longest, shortest = attention_mask.bool().sum(1).aminmax()[::-1]
    if int(shortest) == 0:
        raise ValueError("beam_search: a row of attention_mask is empty; every prompt needs at least one token")
    capacity = max(length, int(longest) + steps - 1)
    device = inputs_embeds.device
    if state is None:
        logits, state = _prefill_once(llm, inputs_embeds, attention_mask, beams, capacity, prefill)
    elif state.batch_size < batch * beams or state.max_length < capacity:
        raise ValueError(
            f"beam_search: {batch} rows of {beams} beams and up to {capacity} tokens do not fit a cache of "
            f"{state.batch_size} rows of {state.max_length}; lower the batch size or beams, or make a larger backend"
        )
    else:
        rows = (torch.arange(state.batch_size, device=device) // beams).clamp(max=batch - 1)
        logits = prefill(llm, state, inputs_embeds[rows], attention_mask[rows])[: batch * beams : beams]
    spare = torch.arange(batch * beams, state.batch_size, device=device)
    first = torch.arange(batch, device=device)[:, None] * beams  # row of each prompt's first beam

    eos = torch.tensor([eos_ids] if isinstance(eos_ids, int) else list(eos_ids), dtype=torch.int64, device=device)
    vocabulary = logits.shape[1]
    # Each end token ends one candidate of each beam, and one token at most completes a loop. So one more per beam lets
    # as many go on as there are beams.
    candidates_per_beam = max(2, 1 + len(eos) + stop_loops)
    scores = torch.full((batch, beams), _NEVER, device=device)
    scores[:, 0] = 0.0  # all beams start equal: only the first may propose
    logits = logits.repeat_interleave(beams, 0)
    # The columns before the answers let every step look back at as many tokens.
    tokens = torch.full((batch, beams, WINDOW + steps), NO_TOKEN, dtype=torch.int64, device=device)
    limit = torch.tensor(limits, device=device)[:, None]
    seen = torch.zeros(batch, beams, vocabulary, dtype=torch.bool, device=device)
    best = torch.full((batch, beams), _NEVER, device=device)  # finished hypotheses and their scores
    done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    best_tokens, best_lengths = tokens.clone(), torch.zeros(batch, beams, dtype=torch.int64, device=device)
    for step in range(steps):
        next_scores = logits.log_softmax(-1)
        if repetition_penalty != 1:
            next_scores = penalise(next_scores, seen.flatten(0, 1), repetition_penalty)
        next_scores = ban_repeated_ngrams(
            next_scores, tokens[:, :, WINDOW : WINDOW + step].flatten(0, 1), no_repeat_ngram_size
        )
        proposals = scores[:, :, None] + next_scores.view(batch, beams, vocabulary)
        top, index = proposals.flatten(1).topk(min(candidates_per_beam * beams, beams * vocabulary), dim=1)
        beam, token = index // vocabulary, index % vocabulary
        candidates = _rows(tokens, beam).clone()
        candidates[:, :, WINDOW + step] = token
        last = step + 1 == steps
        ended = torch.isin(token, eos) | (limit <= step + 1)
        if stop_loops:
            ended |= is_looping(candidates[:, :, step + 1 : WINDOW + step + 1])

        finishing = top / (step + 1) ** length_penalty
        # A row that is done continues until all are done, which must not change its answer.
        finishing = finishing.masked_fill(~ended | done, _NEVER)
        finishing[:, beams:] = _NEVER  # an end counts only where it is among the best
        best, kept = torch.cat([best, finishing], 1).topk(beams, dim=1)
        best_tokens = _rows(torch.cat([best_tokens, candidates], 1), kept)
        lengths = torch.full_like(token, step + 1)
        best_lengths = torch.cat([best_lengths, lengths], 1).gather(1, kept)
        if last:
            break

        scores, running = top.masked_fill(ended, _NEVER).topk(beams, dim=1)
        # Done: no running hypothesis, at its current length, would enter the finished ones.
        done |= scores[:, :1] / (step + 1) ** length_penalty <= best.amin(1, keepdim=True)
        done |= limit <= step + 1
        if bool(done.all()):
            break
        tokens = _rows(candidates, running)
        source = (first + beam.gather(1, running)).flatten()
        state.copy_rows(state, torch.cat([source, spare]))
        chosen = token.gather(1, running)
        if repetition_penalty != 1:
            seen = _rows(seen, beam.gather(1, running)).scatter(2, chosen[:, :, None], True)
        step_tokens = torch.cat([chosen.flatten(), torch.zeros_like(spare)])
        logits = decode_step(llm, state, step_tokens)[: batch * beams]

    ends, answers = set(eos.tolist()), []
    for row, count in zip(best_tokens[:, 0, WINDOW:].tolist(), best_lengths[:, 0].tolist()):
        answers.append(row[: count - 1] if row[count - 1] in ends else row[:count])
    return answers


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, K, N] of the hypotheses index [B, M] -> [B, M, N]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def _prefill_once(
    llm: nn.Module, embeds: Tensor, mask: Tensor, beams: int, capacity: int, prefill: Callable
) -> tuple[Tensor, DecodeState]:
    """Run `prefill` once per prompt and copy its cache to all its beams."""
    small = DecodeState.allocate(llm, embeds.shape[0], embeds.shape[1])
    logits = prefill(llm, small, embeds, mask)
    state = DecodeState.allocate(llm, embeds.shape[0] * beams, capacity)
    state.copy_rows(small, torch.arange(embeds.shape[0], device=embeds.device).repeat_interleave(beams))
    return logits, state
