"""TLTR, the time and layer-wise transformer adapter (Gong et al. 2023, arXiv 2307.03183 and 2309.14405)."""

import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.modeling.masks import Count, valid_mask


class AttentionBlock(nn.Module):
    """Pre-norm transformer block with biases as in Whisper: query, value and output have one, key has none.

    Parameters
    ----------
    dim : int
        Width D.
    heads : int
        Attention heads; D must be a multiple of this.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"tltr: feature_dim is {dim}, not a multiple of {heads} heads; choose heads that divide it."
            )
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each sequence of x [N, S, D]; `mask` [N, S] bool is True at valid keys."""
        normed = self.attention_norm(x)
        query, key, value = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, S, D / heads]
            for linear in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, None, :]
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class TLTR(nn.Module):
    """Attention over time within each encoder layer, then over layers within each frame; one audio token per frame.

    There is no position embedding: only the encoder's features contain the order of frames.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features, over which the result is averaged; the weights do not depend on it.
    llm_dim : int
        Embedding dimension H of the LLM.
    time_heads, layer_heads : int
        Attention heads of the two blocks.
    """

    def __init__(self, feature_dim: int, num_layers: int, llm_dim: int, time_heads: int = 1, layer_heads: int = 8):
        super().__init__()
        self.num_layers = num_layers
        self.time_block = AttentionBlock(feature_dim, time_heads)
        self.layer_block = AttentionBlock(feature_dim, layer_heads)
        self.norm = nn.LayerNorm(feature_dim, elementwise_affine=False)
        self.projection = nn.Linear(feature_dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames: one per frame."""
        return frames

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, T, D], normalized, for features [B, L, T, D] with `frames` [B] valid frames."""
        batch, layers, time, _ = features.shape
        if layers != self.num_layers:
            raise ValueError(f"tltr: features have {layers} layers, the adapter was built for {self.num_layers}.")
        valid = valid_mask(frames, time)  # [B, T]
        x = self.time_block(features.flatten(0, 1), valid.repeat_interleave(layers, dim=0))  # [B*L, T, D]
        x = x.unflatten(0, (batch, layers)).transpose(1, 2)  # [B, T, L, D]
        x = self.layer_block(x.flatten(0, 1)).mean(dim=1)  # [B*T, D]
        return self.norm(x.unflatten(0, (batch, time)))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, L, T, D] with `frames` [B] valid frames to tokens [B, T, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


COMPONENT = TLTR
