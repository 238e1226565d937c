"""CTC over an LLM's word pieces: scores of pieces for the audio tokens of an adapter, with the LLM's word embeddings.

The output layer of the CTC (Graves et al. 2006) has no weights of its own except for the blank. The score of a piece is
the cosine of its word embedding and the audio token, divided by a temperature. An adapter that is trained so outputs
audio tokens close to the embeddings of the words that were said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.modeling.masks import valid_mask

TEMPERATURE = 0.07
# Weight of the squared relative difference between the norm of an audio token and the mean norm of word embeddings.
NORM_WEIGHT = 0.1


class CTCHead(nn.Module):
    """Scores of word pieces for audio tokens.

    Parameters
    ----------
    pieces : Tensor
        Token ids [P] int64 of the pieces that can be emitted, ascending.
    embedding : nn.Module
        The LLM's input embeddings, from V ids to H dimensions; not trained.

    Attributes
    ----------
    blank : nn.Parameter
        Direction [H] float32 of the blank; together with `blank_bias`, a scalar, the only trainable tensors.
    """

    def __init__(self, pieces: Tensor, embedding: nn.Module):
        super().__init__()
        device = next(embedding.parameters()).device
        with torch.no_grad():
            vectors = embedding(pieces.to(device)).float()  # [P, H]; called, because some LLMs scale their embeddings
        self.pieces: Tensor
        self.directions: Tensor
        self.register_buffer("pieces", pieces.to(device))
        self.register_buffer("directions", nn.functional.normalize(vectors, dim=-1), persistent=False)
        self.norm = float(vectors.norm(dim=-1).mean())
        self.blank = nn.Parameter(torch.zeros(vectors.shape[1], device=device))
        self.blank_bias = nn.Parameter(torch.zeros((), device=device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [A, N, 1 + P] float32 for audio tokens [A, N, H]; entry 0 is the blank."""
        blank, scores = self._scores(tokens)
        return torch.cat([blank[..., None], scores.float()], dim=-1).log_softmax(dim=-1)

    def _scores(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the blank [A, N] float32, and of the pieces [A, N, P] in the dtype of the tokens [A, N, H]."""
        directions = nn.functional.normalize(tokens.float(), dim=-1)
        pieces = (self.directions / TEMPERATURE).to(tokens.dtype)
        return directions @ self.blank + self.blank_bias, directions.to(tokens.dtype) @ pieces.T

    def loss(self, tokens: Tensor, counts: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Sum of the CTC losses of a batch, in nats, and of the penalty on the norms of its audio tokens.

        A target that needs more audio tokens than its clip has adds nothing to the CTC loss.

        Parameters
        ----------
        tokens : Tensor
            Audio tokens [A, N, H].
        counts : Tensor
            Number of valid audio tokens [A] int64.
        targets : sequence of Tensor
            Entries [U] int64 of each transcript, from `entries`.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            ctc = _SparseCTC.apply(*self._scores(tokens), counts.tolist(), targets)
            norms = tokens.float().norm(dim=-1)[valid_mask(counts, tokens.shape[1])]
            return ctc + NORM_WEIGHT * (norms / self.norm - 1).square().sum()

    def entries(self, ids: Sequence[int]) -> Tensor:
        """Entries [U] int64 of `forward` for the token ids of a transcript, which are all among the pieces."""
        return torch.searchsorted(self.pieces.cpu(), torch.tensor(ids, dtype=torch.int64)) + 1

    @torch.no_grad()
    def transcribe(self, tokens: Tensor, counts: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Greedy transcripts: the best entry of each audio token, without repetitions and blanks.

        Parameters
        ----------
        tokens : Tensor
            Audio tokens [A, N, H].
        counts : Tensor
            Number of valid audio tokens [A] int64.
        tokenizer : PreTrainedTokenizerBase
            The LLM's.
        """
        texts = []
        for row, count in zip(self(tokens).argmax(dim=-1), counts.tolist()):
            entries = torch.unique_consecutive(row[:count])
            ids = self.pieces[entries[entries > 0] - 1].tolist()
            texts.append(" ".join(tokenizer.decode(ids, skip_special_tokens=True).split()))
        return texts

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of the tensors that `from_tensors` takes: `pieces`, `blank` and `blank_bias`."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], embedding: nn.Module) -> "CTCHead":
        """Rebuild the head that `tensors` returned, for an LLM with these input embeddings.

        Raises
        ------
        ValueError
            As in `check_head`.
        """
        check_head(tensors, int(embedding.num_embeddings), int(embedding.embedding_dim))
        head = cls(tensors["pieces"], embedding)
        head.load_state_dict(dict(tensors))
        return head


class _SparseCTC(torch.autograd.Function):
    """Sum of the CTC losses of a batch, in nats, computed over the pieces of each target only.

    The other pieces matter through the normaliser alone: the gradient of a score is its softmax, less the probability
    that the alignment is there. torch's own CTC writes several tensors of the size of all scores for the same result.
    """

    @staticmethod
    def forward(ctx: Any, blank: Tensor, scores: Tensor, counts: Sequence[int], targets: Sequence[Tensor]) -> Tensor:
        """blank [A, N] float32, scores [A, N, P], entries [U] int64 of each target, from 1 -> float32 scalar."""
        total, gradients = blank.new_zeros(()), (torch.zeros_like(blank), torch.zeros_like(scores))
        for row, (count, target) in enumerate(zip(counts, targets)):
            all_scores = scores[row, :count].float()
            normaliser = torch.logaddexp(blank[row, :count], all_scores.logsumexp(-1))[:, None]
            pieces, local = (target.to(scores.device) - 1).unique(return_inverse=True)
            few = torch.cat([blank[row, :count, None], all_scores[:, pieces]], dim=-1) - normaliser
            loss, occupied = _occupation(few, local + 1)
            if not bool(loss.isfinite()):  # more pieces than audio tokens
                continue
            total += loss
            gradient = all_scores.sub_(normaliser).exp_()
            gradient[:, pieces] -= occupied[:, 1:]
            gradients[1][row, :count] = gradient.to(scores.dtype)
            gradients[0][row, :count] = few[:, 0].exp() - occupied[:, 0]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        blank, scores = ctx.saved_tensors
        return blank * outer[0], scores * outer[0], None, None


def _occupation(log_probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """CTC loss of one clip, and the probability [N, K] of each entry at each audio token, given the target [U].

    log_probabilities [N, K] need not be all entries of a distribution.
    """
    if log_probabilities.device.type == "mps":  # which has no CTC
        loss, occupied = _occupation(log_probabilities.cpu(), target.cpu())
        return loss.to(log_probabilities.device), occupied.to(log_probabilities.device)
    counts, lengths = torch.tensor([len(log_probabilities)]), torch.tensor([len(target)])
    with torch.enable_grad():
        variable = log_probabilities.detach().requires_grad_()
        loss = nn.functional.ctc_loss(variable[:, None], target[None], counts, lengths, reduction="sum")
    # torch returns the gradient of the scores before a softmax: the probabilities less the occupation.
    (gradient,) = torch.autograd.grad(loss, variable)
    return loss.detach(), variable.detach().exp() - gradient


def required_tokens(ids: Sequence[int]) -> int:
    """Fewest audio tokens that can emit a transcript: one per piece, and a blank between two equal ones.

    Examples
    --------
    >>> required_tokens([5, 7, 7, 9])
    5
    """
    return len(ids) + sum(left == right for left, right in zip(ids, ids[1:]))


def check_head(tensors: Mapping[str, Tensor], vocabulary: int | None = None, llm_dim: int | None = None) -> None:
    """Check the tensors of a CTC head that come from a file.

    Parameters
    ----------
    tensors : mapping
        `pieces`, `blank` and `blank_bias`.
    vocabulary, llm_dim : int, optional
        Sizes V and H of the LLM's input embeddings; not compared where they are None.

    Raises
    ------
    ValueError
        Other names, shapes or dtypes, pieces that are not ascending ids of the vocabulary, or numbers that are not
        finite.

    Examples
    --------
    >>> head = {"pieces": torch.tensor([3, 9]), "blank": torch.zeros(4), "blank_bias": torch.zeros(())}
    >>> check_head(head, vocabulary=8, llm_dim=4)
    Traceback (most recent call last):
    ValueError: pieces has the id 9, and the LLM's vocabulary has 8 entries
    """
    dimensions, names = {"pieces": 1, "blank": 1, "blank_bias": 0}, sorted(tensors)
    if names != sorted(dimensions):
        raise ValueError(f"it has the tensors {', '.join(names)} instead of {', '.join(sorted(dimensions))}")
    for name, tensor in tensors.items():
        if tensor.dtype != (torch.int64 if name == "pieces" else torch.float32) or tensor.dim() != dimensions[name]:
            raise ValueError(f"{name} is {tensor.dtype} with {tensor.dim()} dimensions")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has numbers that are not finite")
    pieces, blank = tensors["pieces"], tensors["blank"]
    if len(pieces) == 0 or pieces[0] < 0 or bool((pieces[1:] <= pieces[:-1]).any()):
        raise ValueError("pieces are not ascending token ids")
    if vocabulary is not None and pieces[-1] >= vocabulary:
        raise ValueError(f"pieces has the id {int(pieces[-1])}, and the LLM's vocabulary has {vocabulary} entries")
    if llm_dim is not None and len(blank) != llm_dim:
        raise ValueError(f"blank has {len(blank)} dimensions, and the LLM's embeddings have {llm_dim}")
