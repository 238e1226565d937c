"""Soft text: target embeddings for the audio tokens of a clip, from its timed words and labels.

The target of an audio token is the mean of the embeddings of the words spoken in its time, plus the weighted embeddings
of the clip's labels (gender, sound class, ...). It has two uses: an LLM is pretrained on prompts with soft text in the
audio slot, and the projection of an adapter is initialised to output soft text (`alignment_init`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from audiolm_lite.language.pieces import pieces_inside

LABEL_WEIGHT = 0.4
ONSET_WEIGHT = 0.4


@dataclass
class SoftText:
    """Sparse weights of vocabulary entries at the audio tokens of one clip.

    Attributes
    ----------
    position, piece : ndarray of int64, [K]
        Audio token and vocabulary entry.
    weight : ndarray of float32, [K]
    tokens : int
        Number of audio tokens N.
    """

    position: np.ndarray
    piece: np.ndarray
    weight: np.ndarray
    tokens: int

    def embed(self, embedding: Tensor) -> Tensor:
        """Weighted sums of the rows of `embedding` [V, H]: [N, H]; differentiable."""
        out = embedding.new_zeros(self.tokens, embedding.shape[1])
        weight = torch.from_numpy(self.weight).to(embedding)[:, None]
        position = torch.from_numpy(self.position).to(embedding.device)
        return out.index_add(0, position, weight * embedding[torch.from_numpy(self.piece).to(embedding.device)])


def soft_text(
    words: list[tuple[str, float, float]],
    labels: list[str],
    tokens: int,
    token_seconds: float,
    tokenizer: PreTrainedTokenizerBase,
    onset: str = ",",
) -> SoftText:
    """Compute the weights of vocabulary entries at the audio tokens of a clip.

    Parameters
    ----------
    words : list of (str, float, float)
        Word, start and end in seconds. The pieces of a word, as it stands inside a sentence (`pieces_inside`), are
        spread evenly over its time.
    labels : list of str
        Have a weight of `LABEL_WEIGHT` at each token, which is split evenly between the pieces of a label.
    tokens : int
        Number of audio tokens N.
    token_seconds : float
        Duration of an audio token.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    onset : str
        Text whose embedding marks the token in which a word begins, so that a repeated word differs from a long one.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> vocabulary = models.WordLevel({",": 0, "yes": 1, "male": 2}, unk_token=",")
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary))
    >>> soft = soft_text([("yes", 0.0, 0.15)], ["male"], tokens=2, token_seconds=0.1, tokenizer=tokenizer)
    >>> soft.embed(torch.eye(3))
    tensor([[0.4000, 1.0000, 0.4000],
            [0.0000, 0.5000, 0.4000]])
    """
    entries: dict[tuple[int, int], float] = {}

    def add(position: int, piece: int, weight: float) -> None:
        if 0 <= position < tokens and weight > 0:
            entries[position, piece] = entries.get((position, piece), 0.0) + weight

    mark = tokenizer.encode(onset, add_special_tokens=False)[-1]
    for word, start, end in words:
        pieces = pieces_inside(word, tokenizer)
        step = (end - start) / len(pieces)
        for index, piece in enumerate(pieces):
            left, right = start + index * step, start + (index + 1) * step
            for position in range(int(left / token_seconds), int(right / token_seconds) + 1):
                overlap = min(right, (position + 1) * token_seconds) - max(left, position * token_seconds)
                add(position, piece, overlap / token_seconds)
        add(int(start / token_seconds), mark, ONSET_WEIGHT)
    for label in labels:
        pieces = pieces_inside(label, tokenizer)
        for position in range(tokens):
            for piece in pieces:
                add(position, piece, LABEL_WEIGHT / len(pieces))
    keys = np.array(list(entries), dtype=np.int64).reshape(-1, 2)
    return SoftText(keys[:, 0], keys[:, 1], np.array(list(entries.values()), dtype=np.float32), tokens)
