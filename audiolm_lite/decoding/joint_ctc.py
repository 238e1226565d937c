"""Joint CTC and LLM decoding of transcripts, in one pass and greedy (Watanabe et al. 2017).

"Hybrid CTC/Attention Architecture for End-to-End Speech Recognition" (IEEE JSTSP 11, 8). Each next token maximises

    (1 - weight) * log p_LLM(token | prompt, prefix) + weight * (log p_CTC(prefix + token) - log p_CTC(prefix))

where p_CTC(prefix) is the probability that the transcript of the CTC begins with the prefix; at the end of the answer,
that it is the prefix. So the LLM can neither omit, repeat nor invent words without a cost, and corrects the spelling of
the adapter's CTC.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.precision import float64_device
from audiolm_lite.modeling.masks import valid_mask

# Lowest log-probability of a piece in a frame, also of tokens that the CTC cannot emit: the LLM may overrule the CTC.
FLOOR = -14.0
# Candidates for the next token: the LLM's best, and the pieces with this log-probability in at least one frame.
BEST = 15
LIKELY = -3.0
# Log-probability of prefixes with more pieces than frames. A finite one, so that differences are no NaN.
IMPOSSIBLE = -1e5
CANNOT_EMIT = 0  # entry of the blank, which is no token
MARKS = ("Ġ", "▁")  # the space before a word in the pieces of byte-level BPE and of SentencePiece


class PrefixScores:
    """CTC log-probabilities of a prefix per row, and of the prefixes that are one piece longer.

    Sums over all alignments. With n(t) and b(t) the log-probabilities of the prefix in the frames up to t where the
    last frame emits its last piece or the blank, and x(t) the log-probability of a further piece,

        n'(t) = log(exp n'(t-1) + exp start(t)) + x(t),    start(t) = log(exp n(t-1) + exp b(t-1))

    where n is left out of the start if the two pieces are equal. As a cumulative sum, without a loop over the frames:
    n'(t) = X(t) + logcumsumexp(start(s) - X(s-1)), with X the cumulative sum of x.

    Parameters
    ----------
    log_probabilities : Tensor
        [R, N, 1 + P] float32 of a `CTCHead`; entry 0 is the blank.
    counts : Tensor
        [R] int64, valid frames of each row, at least 1; the others have no effect.

    Examples
    --------
    >>> scores = PrefixScores(torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]).log(), torch.tensor([2]))
    >>> scores.extended(torch.tensor([[1]])).exp(), scores.complete().exp()
    (tensor([[0.9000]], dtype=torch.float64), tensor([0.1000], dtype=torch.float64))
    >>> scores.advance(torch.tensor([1]))
    >>> scores.complete().exp()  # of one piece: "piece blank", "blank piece" and "piece piece"
    tensor([0.9000], dtype=torch.float64)
    """

    def __init__(self, log_probabilities: Tensor, counts: Tensor):
        where = float64_device(log_probabilities.device)
        log_probabilities, counts = log_probabilities.to(where), counts.to(where)
        self.valid, self.end = valid_mask(counts, log_probabilities.shape[1]), counts[:, None] - 1
        frames = log_probabilities.masked_fill(~self.valid[..., None], FLOOR)
        blank = frames[..., 0].double()
        self.pieces = frames.transpose(1, 2).clamp(min=FLOOR).contiguous()  # [R, 1 + P, N]
        self.pieces[:, CANNOT_EMIT] = FLOOR
        self.blanks = blank.cumsum(-1)  # [R, N]
        self.blanks_before = self.blanks - blank
        self.last = torch.full_like(counts, CANNOT_EMIT)
        # The empty prefix: all frames so far are blanks.
        self.in_piece, self.in_blank = torch.full_like(blank, -torch.inf), self.blanks
        self.before = 0.0  # log-probability of the prefix before the first frame

    def _frames(self, entries: Tensor) -> Tensor:
        """Log-probabilities [R, K, N] float64 of entries [R, K] in each frame."""
        rows = torch.arange(len(entries), device=entries.device)[:, None]
        return self.pieces[rows, entries].double()

    def _starts(self, entries: Tensor) -> Tensor:
        """Log-probabilities [R, K, N] of the prefix just before each valid frame in which entries [R, K] may start."""
        starts = torch.stack([torch.logaddexp(self.in_piece, self.in_blank), self.in_blank], dim=1)
        starts = torch.nn.functional.pad(starts[..., :-1], (1, 0), value=self.before)
        starts = starts.masked_fill(~self.valid[:, None], -torch.inf)
        same = (entries == self.last[:, None]) & (entries != CANNOT_EMIT)
        return torch.where(same[..., None], starts[:, 1:], starts[:, :1])

    def extended(self, entries: Tensor) -> Tensor:
        """Log-probabilities [R, K] float64 that the transcript begins with the prefix and one of entries [R, K]."""
        return torch.logsumexp(self._starts(entries) + self._frames(entries), dim=-1).clamp(min=IMPOSSIBLE)

    def complete(self) -> Tensor:
        """Log-probabilities [R] float64 that the transcript is the prefix."""
        total = torch.logaddexp(self.in_piece, self.in_blank).gather(1, self.end)
        return total[:, 0].clamp(min=IMPOSSIBLE)

    def advance(self, entries: Tensor) -> None:
        """Add entries [R] to the prefixes."""
        starts, pieces = self._starts(entries[:, None])[:, 0], self._frames(entries[:, None])[:, 0]
        sums = pieces.cumsum(-1)
        self.in_piece = sums + torch.logcumsumexp(starts - (sums - pieces), dim=-1)
        earlier = torch.nn.functional.pad(self.in_piece[:, :-1], (1, 0), value=-torch.inf)
        self.in_blank = self.blanks + torch.logcumsumexp(earlier - self.blanks_before, dim=-1)
        self.last, self.before = entries, -torch.inf


class JointChooser:
    """Chooses the next tokens of `generate`, those of some rows jointly with a CTC; the others are greedy.

    So are rows for which the LLM wants to begin with a token that the CTC cannot emit: such an answer is no transcript,
    but for example "[no speech]".

    Parameters
    ----------
    scores : PrefixScores
        Of R rows of the batch, before any token.
    rows : sequence of int
        Which R rows.
    entries : Tensor
        [2, V] int64 from `token_entries`.
    eos_ids : sequence of int
        Tokens that end an answer.
    weight : float
        Weight of the CTC, from 0 to below 1.

    Examples
    --------
    >>> scores = PrefixScores(torch.tensor([[[0.1, 0.9, 0.0], [0.1, 0.0, 0.9]]]).log(), torch.tensor([2]))
    >>> choose = JointChooser(scores, [1], torch.tensor([[0, 1, 2]] * 2), eos_ids=[0], weight=0.5)
    >>> [choose(torch.zeros(2, 3), torch.empty(2, position)).tolist() for position in range(3)]
    [[0, 1], [0, 2], [0, 0]]
    """

    def __init__(
        self, scores: PrefixScores, rows: Sequence[int], entries: Tensor, eos_ids: Sequence[int], weight: float
    ):
        device = scores.valid.device
        self.scores, self.weight = scores, weight
        self.rows, self.entries = torch.tensor(rows, device=device), entries.to(device)
        self.eos = torch.tensor(list(eos_ids), dtype=torch.int64, device=device)
        likely = (scores.pieces > LIKELY).any(-1)  # [R, 1 + P]
        self.likely = [self._ids(likely[:, table]) for table in self.entries]  # first token, later tokens
        self.prefix = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self.joint = torch.ones(len(rows), dtype=torch.bool, device=device)

    @staticmethod
    def _ids(chosen: Tensor) -> Tensor:
        """Columns that are true in each row of [R, V], -1 after them."""
        ids = [row.nonzero()[:, 0] for row in chosen]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Next tokens [B] for logits [B, V] after the rows' tokens [B, N] so far."""
        position = 0 if tokens.shape[1] == 0 else 1
        chosen = logits.argmax(-1)
        own = logits.to(self.prefix.device)[self.rows].log_softmax(-1)
        greedy = chosen.to(self.prefix.device)[self.rows]
        if position == 0:
            self.joint = (self.entries[0][greedy] != CANNOT_EMIT) | torch.isin(greedy, self.eos)
        best = own.topk(min(BEST, own.shape[1])).indices
        likely = self.likely[position]
        likely = torch.where(likely < 0, best[:, :1], likely)
        candidates = torch.cat([best, likely, self.eos.expand(len(best), -1)], dim=1)  # [R, K]
        entries = self.entries[position][candidates]
        ends = torch.isin(candidates, self.eos)
        prefixes = torch.where(ends, self.scores.complete()[:, None], self.scores.extended(entries))
        gains = (1 - self.weight) * own.gather(1, candidates) + self.weight * (prefixes - self.prefix[:, None])
        winner = gains.argmax(-1, keepdim=True)
        joint = torch.where(self.joint, candidates.gather(1, winner)[:, 0], greedy)
        chosen[self.rows.to(chosen.device)] = joint.to(chosen.device)
        self.prefix = prefixes.gather(1, winner)[:, 0]
        self.scores.advance(entries.gather(1, winner)[:, 0])
        return chosen


def token_entries(pieces: Tensor, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Entries of a CTC head for the tokens of an LLM, as the first token of an answer and as a later one.

    The CTC emits every word with the space before it (`language.pieces`). An answer begins without a space, so its
    first token counts as the piece with a space.

    Parameters
    ----------
    pieces : Tensor
        [P] int64, the token ids that the head emits.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    vocabulary : int
        Number of logits V of the LLM; may exceed the tokenizer's tokens.

    Returns
    -------
    Tensor
        [2, V] int64; `CANNOT_EMIT` for tokens that the head does not have.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> backend = Tokenizer(models.BPE({"a": 0, "n": 1, "Ġa": 2}, []))
    >>> token_entries(torch.tensor([1, 2]), PreTrainedTokenizerFast(tokenizer_object=backend), vocabulary=4).tolist()
    [[2, 1, 2, 0], [0, 1, 2, 0]]
    """
    later = torch.full((vocabulary,), CANNOT_EMIT)
    later[pieces.cpu()] = torch.arange(1, len(pieces) + 1)
    ids = tokenizer.get_vocab()
    first = later.clone()
    for token, number in ids.items():
        spaced = next((ids[mark + token] for mark in MARKS if mark + token in ids), None)
        if spaced is not None and not token.startswith(MARKS) and number < vocabulary:
            first[number] = later[spaced]
    return torch.stack([first, later])
