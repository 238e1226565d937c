"""CTC over an LLM's word pieces: scores of pieces for the audio tokens of an adapter, with the LLM's word embeddings.

The output layer of the CTC (Graves et al. 2006) has no weights of its own except for the blank. The score of a piece is
the cosine of its word embedding and the audio token, divided by a temperature. An adapter that is trained so outputs
audio tokens close to the embeddings of the words that were said.
"""

from collections.abc import Mapping, Sequence

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
        directions = nn.functional.normalize(tokens.float(), dim=-1)
        scores = directions.to(tokens.dtype) @ self.directions.T.to(tokens.dtype)
        blank = directions @ self.blank + self.blank_bias
        return torch.cat([blank[..., None], scores.float() / TEMPERATURE], dim=-1).log_softmax(dim=-1)

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
            log_probabilities = self(tokens).transpose(0, 1)  # [N, A, 1 + P]
            lengths = torch.tensor([len(target) for target in targets])
            joined = torch.cat(list(targets)).to(tokens.device)
            ctc = nn.functional.ctc_loss(
                log_probabilities, joined, counts.cpu(), lengths, reduction="sum", zero_infinity=True
            )
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
