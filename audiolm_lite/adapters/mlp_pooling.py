"""Frames joined, then an MLP: Voxtral's projector (arXiv 2507.13264) and NeMo's pooling connectors."""

import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.adapters.frames import Count, one_layer, require_one_layer, valid_frames


class MLPPooling(nn.Module):
    """Join every `stride` frames of one encoder layer into one, then Linear, GELU, Linear.

    The last group of a clip may be short: an average takes the frames there are, a concatenation has zeros for those
    that are missing.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers in the features; this adapter reads exactly one.
    llm_dim : int
        Embedding dimension H of the LLM.
    stride : int
        Frames per audio token.
    pooling : {"concat", "average"}
        How frames become one. Voxtral concatenates 4.
    hidden_dim : int, optional
        Width of the hidden layer; None is the LLM's, as in Voxtral.
    bias : bool
        Whether the two linear maps have biases; Voxtral's have none.
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        stride: int = 4,
        pooling: str = "concat",
        hidden_dim: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        require_one_layer("mlp_pooling", num_layers)
        if pooling not in ("concat", "average"):
            raise ValueError(f'mlp_pooling: pooling is {pooling!r}, it must be "concat" or "average".')
        self.stride, self.pooling = stride, pooling
        hidden_dim = hidden_dim or llm_dim
        self.pooled = nn.Linear(feature_dim * (stride if pooling == "concat" else 1), hidden_dim, bias=bias)
        self.projection = nn.Linear(hidden_dim, llm_dim, bias=bias)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames."""
        return -(-frames // self.stride)

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, hidden_dim] for features [B, 1, T, D] with `frames` [B] valid frames."""
        x = one_layer("mlp_pooling", features)
        valid = valid_frames(frames, x.shape[1])[..., None]
        missing = -x.shape[1] % self.stride
        groups = F.pad(x.masked_fill(~valid, 0), (0, 0, 0, missing)).unflatten(1, (-1, self.stride))  # [B, N, k, D]
        if self.pooling == "concat":
            joined = groups.flatten(2)
        else:
            counts = F.pad(valid, (0, 0, 0, missing)).unflatten(1, (-1, self.stride)).sum(2).clamp(min=1)
            joined = groups.sum(2) / counts.to(x.dtype)
        return F.gelu(self.pooled(joined))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


PART = MLPPooling
