"""Q-Former adapter over a complete clip (SLAM-LLM's "q-former" projector; BLIP-2, Li et al. 2023, arXiv 2301.12597)."""

import torch
from torch import Tensor, nn

from audiolm_lite.adapters.query_block import EPS, QueryBlock
from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count, valid_mask


class QFormer(nn.Module):
    """A fixed number of learned queries attends to one encoder layer of a clip of any length.

    Only valid frames are attended. (SLAM-LLM passes HuBERT's padding mask, in which True is padding, where True must be
    a valid frame; that is not reproduced.) The last operation is a LayerNorm, so there is no `projection` and no
    closed-form initialization.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features; must be 1.
    llm_dim : int
        Embedding dimension H of the LLM.
    queries : int
        Audio tokens per clip.
    dim, heads, hidden_dim : int
        Width, attention heads and MLP width of the blocks.
    blocks : int
        Number of blocks.
    cross_every : int
        Blocks 0, `cross_every`, 2 * `cross_every`, ... attend to the audio.
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        queries: int = 64,
        dim: int = 768,
        heads: int = 12,
        hidden_dim: int = 3072,
        blocks: int = 8,
        cross_every: int = 2,
    ):
        super().__init__()
        require_single_layer("qformer", num_layers)
        self.query = nn.Parameter(torch.randn(queries, dim))
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.blocks = nn.ModuleList(
            QueryBlock(dim, heads, hidden_dim, feature_dim if i % cross_every == 0 else None) for i in range(blocks)
        )
        self.linear = nn.Linear(dim, llm_dim)
        self.norm = nn.LayerNorm(llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip: the number of queries."""
        queries = self.query.shape[0]
        return torch.full_like(frames, queries) if isinstance(frames, Tensor) else queries

    def query_states(self, features: Tensor, frames: Tensor) -> Tensor:
        """Queries after the last block [B, queries, dim] for features [B, 1, T, D] with `frames` [B] valid frames."""
        memory = single_layer("qformer", features)
        mask = valid_mask(frames, memory.shape[1])
        x = self.query_norm(self.query).expand(memory.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, memory, mask)
        return x

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, queries, H] and counts [B]."""
        return self.norm(self.linear(self.query_states(features, frames))), self.num_tokens(frames)


COMPONENT = QFormer
