"""Pooling of frames and an MLP: Voxtral's projector (arXiv 2507.13264) and NeMo's pooling connectors."""

import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count, valid_mask


class MLPPooling(nn.Module):
    """Pool every `stride` frames of one encoder layer into one, then apply Linear, GELU, Linear.

    The last group of a clip can have fewer frames: "average" divides by their number, "concat" pads with zeros.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features; must be 1.
    llm_dim : int
        Embedding dimension H of the LLM.
    stride : int
        Frames per audio token.
    pooling : {"concat", "average"}
        How frames are pooled. Voxtral concatenates 4.
    hidden_dim : int, optional
        Width of the hidden layer; by default `llm_dim`, as in Voxtral.
    bias : bool
        Whether the two linear layers have biases; those of Voxtral have none.
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
        require_single_layer("mlp_pooling", num_layers)
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
        x = single_layer("mlp_pooling", features)
        valid = valid_mask(frames, x.shape[1])[..., None]
        padding = -x.shape[1] % self.stride
        groups = F.pad(x.masked_fill(~valid, 0), (0, 0, 0, padding)).unflatten(1, (-1, self.stride))  # [B, N, k, D]
        if self.pooling == "concat":
            pooled = groups.flatten(2)
        else:
            counts = F.pad(valid, (0, 0, 0, padding)).unflatten(1, (-1, self.stride)).sum(2).clamp(min=1)
            pooled = groups.sum(2) / counts.to(x.dtype)
        return F.gelu(self.pooled(pooled))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


COMPONENT = MLPPooling
