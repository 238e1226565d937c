"""The BERT-like block of both Q-Formers: queries attend to each other and optionally to audio (arXiv 2301.12597)."""

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12  # as in BERT, in all norms of the block and in the norm of the queries


class QueryAttention(nn.Module):
    """Multi-head attention of queries to a memory of any width, with biases in all linear layers.

    Parameters
    ----------
    dim : int
        Width of the queries and of the result.
    heads : int
        Attention heads; `dim` must be a multiple of this.
    memory_dim : int
        Width of the memory.
    """

    def __init__(self, dim: int, heads: int, memory_dim: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"qformer: dim is {dim}, not a multiple of {heads} heads; choose heads that divide it.")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(memory_dim, dim)
        self.value = nn.Linear(memory_dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from x [N, Q, dim] to memory [N, S, memory_dim]; `mask` [N, S] bool is True at valid keys."""
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, Q or S, dim / heads]
            for states in (self.query(x), self.key(memory), self.value(memory))
        )
        mask = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class QueryBlock(nn.Module):
    """Post-norm block: self-attention of the queries, optional cross-attention to audio, MLP with exact GELU.

    Parameters
    ----------
    dim : int
        Width of the queries.
    heads : int
        Attention heads.
    hidden_dim : int
        Width of the MLP.
    memory_dim : int or None
        Width of the audio frames; None for a block without cross-attention.
    """

    def __init__(self, dim: int, heads: int, hidden_dim: int, memory_dim: int | None):
        super().__init__()
        self.self_attention = QueryAttention(dim, heads, dim)
        self.self_norm = nn.LayerNorm(dim, eps=EPS)
        self.cross_attention = None
        if memory_dim is not None:
            self.cross_attention = QueryAttention(dim, heads, memory_dim)
            self.cross_norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
        self.mlp_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Update queries [N, Q, dim] from memory [N, S, memory_dim]; `mask` [N, S] bool is True at valid frames."""
        queries = self.self_norm(queries + self.self_attention(queries, queries))
        if self.cross_attention is not None:
            queries = self.cross_norm(queries + self.cross_attention(queries, memory, mask))
        return self.mlp_norm(queries + self.mlp(queries))
