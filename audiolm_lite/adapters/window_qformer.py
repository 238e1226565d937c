"""Window-level Q-Former (SALMONN, Tang et al. 2023, arXiv 2310.13289): a few audio tokens per third of a second."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.adapters.query_block import EPS, QueryBlock
from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count, valid_mask


class WindowQFormer(nn.Module):
    """Learned queries attend to the frames of each window of `window` frames separately.

    A frame can contain the concatenated features of several encoders (`streams`). Each stream has its own LayerNorm
    here and not in the encoder `fused`, so that the norms can be trained on stored features. Zeros after the end of a
    shorter stream stay zero after its norm, as published, and such frames are still attended for the other stream.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features; must be 1.
    llm_dim : int
        Embedding dimension H of the LLM.
    streams : list of int, optional
        Dimensions of the encoders within a frame, e.g. [1280, 768] for Whisper and BEATs; by default one encoder.
    window : int
        Frames per window; SALMONN's third of a second is 17 at 50 frames per second.
    queries : int
        Audio tokens per window.
    dim, heads, hidden_dim : int
        Width, attention heads and MLP width of the blocks.
    blocks : int
        Number of blocks, each with cross-attention.
    published_behaviour : bool
        Drop the frames after a clip's last complete window, up to 0.32 s, as SALMONN does. By default they are one more
        window, of which only valid frames are attended.
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        streams: list[int] | None = None,
        window: int = 17,
        queries: int = 1,
        dim: int = 768,
        heads: int = 12,
        hidden_dim: int = 3072,
        blocks: int = 2,
        published_behaviour: bool = False,
    ):
        super().__init__()
        require_single_layer("window_qformer", num_layers)
        self.streams = list(streams or [feature_dim])
        if sum(self.streams) != feature_dim:
            raise ValueError(
                f"window_qformer: streams {self.streams} add up to {sum(self.streams)}, a frame has {feature_dim}; "
                "list the dimensions of all fused encoders in their order."
            )
        self.window = window
        self.published_behaviour = published_behaviour
        self.stream_norms = nn.ModuleList(nn.LayerNorm(size) for size in self.streams)
        self.query = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.blocks = nn.ModuleList(QueryBlock(dim, heads, hidden_dim, feature_dim) for _ in range(blocks))
        self.projection = nn.Linear(dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames."""
        return self._windows(frames) * self.query.shape[0]

    def _windows(self, frames: Count) -> Count:
        return frames // self.window if self.published_behaviour else -(-frames // self.window)

    def normalize_streams(self, features: Tensor) -> Tensor:
        """Frames [B, T, D] with each stream normalized, from features [B, 1, T, D]."""
        streams = single_layer("window_qformer", features).split(self.streams, dim=-1)
        # A frame of exact zeros is padding of a stream: no encoder computes one.
        normalized = [
            norm(stream).masked_fill(~stream.any(dim=-1, keepdim=True), 0)
            for norm, stream in zip(self.stream_norms, streams)
        ]
        return torch.cat(normalized, dim=-1)

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, dim] for features [B, 1, T, D] with `frames` [B] valid frames."""
        x = self.normalize_streams(features)
        batch, time, _ = x.shape
        count = self._windows(time)
        size = count * self.window
        mask = F.pad(valid_mask(frames, time), (0, max(0, size - time)))[:, :size].reshape(-1, self.window)
        # Windows after a clip's end are not tokens, but attention without any key would give NaN.
        mask = mask | ~mask.any(dim=1, keepdim=True)
        windows = F.pad(x, (0, 0, 0, max(0, size - time)))[:, :size].reshape(batch * count, self.window, -1)
        queries = self.query_norm(self.query).expand(windows.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, windows, mask)
        return queries.reshape(batch, -1, queries.shape[-1])  # windows in order, the queries of each in order

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


COMPONENT = WindowQFormer
