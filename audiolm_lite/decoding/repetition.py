"""Guards against runaway answers: the end of a loop, and tokens that would repeat an n-gram.

A small LLM that has lost the thread repeats a word or a sentence until the limit of tokens. `is_looping` finds this
while the answer is generated, on the device and without waiting for it; `cut_loop` finds the same place in a finished
answer and removes the repeats.

An answer loops when it ends in the same n-gram over and over, with a period of at most `LONGEST_PERIOD` tokens, and the
repeated part has at least `LOOP_TOKENS` tokens and `LOOP_REPEATS` repeats: a token 24 times, two tokens 12 times, a
sentence of 8 to 16 tokens three times. What people say stays below: "no no no", spelled letters, telephone numbers, a
refrain of two lines.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST_PERIOD = 16
LOOP_TOKENS = 24
LOOP_REPEATS = 3
# The tokens before the newest one by which `is_looping` decides, itself included.
WINDOW = max(LOOP_TOKENS, LOOP_REPEATS * LONGEST_PERIOD)
NO_TOKEN = -1


def _span(period: int) -> int:
    """Tokens of the shortest loop of this period."""
    return max(LOOP_TOKENS, LOOP_REPEATS * period)


def is_looping(tail: Tensor) -> Tensor:
    """Find out which answers loop.

    Parameters
    ----------
    tail : Tensor
        [..., WINDOW] int64, the newest tokens of each answer, NO_TOKEN before its first one.

    Returns
    -------
    Tensor
        [...] bool.

    Examples
    --------
    >>> spelled = torch.tensor([NO_TOKEN] * (WINDOW - 23) + [7] * 23)
    >>> sentence = torch.tensor(([1, 2, 3, 4, 5, 6, 7, 8] * 6)[:WINDOW])
    >>> is_looping(torch.stack([spelled, sentence]))
    tensor([False,  True])
    """
    places = torch.arange(WINDOW, device=tail.device)
    periods = torch.arange(1, LONGEST_PERIOD + 1, device=tail.device)[:, None]
    spans = (periods * LOOP_REPEATS).clamp(min=LOOP_TOKENS)
    earlier = tail[..., (places - periods).clamp(min=0)]  # [..., periods, WINDOW]
    equal = (tail[..., None, :] == earlier) | (places < WINDOW - spans + periods)
    return equal.all(-1).any(-1) & (tail[..., -1] != NO_TOKEN)


def cut_loop(tokens: Sequence[int]) -> tuple[list[int], bool]:
    """Cut an answer where it starts to repeat itself, if it loops.

    Parameters
    ----------
    tokens : sequence of int
        An answer, possibly longer than its loop.

    Returns
    -------
    list of int
        The answer up to the end of the first occurrence of what it repeats; all of it if it does not loop.
    bool
        Whether it loops.

    Examples
    --------
    >>> cut_loop([5] + [1, 2] * 12)
    ([5, 1, 2], True)
    >>> cut_loop([9, 9, 9])
    ([9, 9, 9], False)
    """
    repeated = [0] * (LONGEST_PERIOD + 1)  # how many of the last tokens equal the one a period before
    for place, token in enumerate(tokens):
        for period in range(1, min(LONGEST_PERIOD, place) + 1):
            repeated[period] = repeated[period] + 1 if tokens[place - period] == token else 0
            if repeated[period] + period >= _span(period):
                return list(tokens[: place + 1 - repeated[period]]), True
    return list(tokens), False


def ban_repeated_ngrams(scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Give -inf to tokens that would complete an n-gram that the row already has, as transformers does.

    Parameters
    ----------
    scores : Tensor
        [B, V] logits or log probabilities.
    tokens : Tensor
        [B, N] int64, the rows so far.
    size : int
        Tokens n of the n-gram; 0 bans nothing.

    Examples
    --------
    >>> ban_repeated_ngrams(torch.zeros(1, 4), torch.tensor([[1, 2, 3, 1]]), size=2).tolist()
    [[0.0, 0.0, -inf, 0.0]]
    """
    if size < 1 or tokens.shape[1] < size:
        return scores
    ngrams = tokens.unfold(1, size, 1)  # [B, N - n + 1, n]
    prefix = tokens[:, tokens.shape[1] - size + 1 :]
    same = (ngrams[..., :-1] == prefix[:, None]).all(-1)
    vocabulary = scores.shape[1]
    # Others mark a column that does not exist, so that no place of a shape depends on the tokens.
    marked = torch.where(same, ngrams[..., -1], vocabulary)
    banned = torch.zeros(scores.shape[0], vocabulary + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(banned.scatter_(1, marked, True)[:, :-1], float("-inf"))


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores [B, V] of tokens that a row has, `seen` [B, V] bool, by a penalty.

    The repetition penalty of Keskar et al. 2019 (arXiv 1909.05858).

    Examples
    --------
    >>> penalise(torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[True, True, False]]), 2.0).tolist()
    [[1.0, -2.0, 3.0]]
    """
    if penalty == 1:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
