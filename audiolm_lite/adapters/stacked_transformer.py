"""Stack of encoder layers and frames, then transformer blocks with convolutions: a small adapter for speech and sound.

Words show best in an encoder's last layer, speaker and sound in its lower ones. Each layer is normalised and all are
concatenated, as are the frames of one audio token (linear stacking, as in SLAM-ASR, arXiv 2402.08846). The blocks then
relate the audio tokens of a clip to one another, as the Conformer adapter of SALM (arXiv 2310.09424) does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.modeling.masks import Count, valid_mask


class StackedTransformer(nn.Module):
    """Concatenate L normalised layers of `stride` frames, map them to `dim`, run blocks, and project.

    The last frames, up to `stride` - 1, that do not fill a window are dropped.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features.
    llm_dim : int
        Embedding dimension H of the LLM.
    stride : int
        Frames per audio token.
    dim, heads : int
        Width and attention heads of the blocks.
    blocks : int
        Number of blocks.
    kernel : int
        Audio tokens that the convolution of a block sees; odd.
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        stride: int = 2,
        dim: int = 384,
        heads: int = 6,
        blocks: int = 2,
        kernel: int = 7,
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"stacked_transformer: kernel is {kernel}; choose an odd number, so that it is centred.")
        if dim % heads:
            raise ValueError(f"stacked_transformer: dim is {dim}; it must be a multiple of heads, which is {heads}.")
        self.stride, self.num_layers = stride, num_layers
        self.layer_norms = nn.ModuleList(nn.LayerNorm(feature_dim) for _ in range(num_layers))
        self.stacking = nn.Linear(stride * num_layers * feature_dim, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads, kernel) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames."""
        return frames // self.stride

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, dim] for features [B, L, T, D] with `frames` [B] valid frames."""
        batch, layers, time, width = features.shape
        if layers != self.num_layers:
            raise ValueError(
                f"stacked_transformer: features have {layers} layers, the adapter is for {self.num_layers}."
            )
        tokens = time // self.stride
        normed = [norm(features[:, layer]) for layer, norm in enumerate(self.layer_norms)]
        windows = [x[:, : tokens * self.stride].reshape(batch, tokens, self.stride * width) for x in normed]
        x = self.stacking(torch.cat(windows, dim=-1))
        valid = valid_mask(self.num_tokens(frames), tokens)  # [B, N]
        for block in self.blocks:
            x = block(x, valid)
        return self.norm(x)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, L, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


class _Block(nn.Module):
    """Depthwise convolution over time, self-attention and feed-forward layer, each normalised before and added."""

    def __init__(self, dim: int, heads: int, kernel: int):
        super().__init__()
        self.heads = heads
        self.convolution_norm = nn.LayerNorm(dim)
        self.convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_in = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map audio tokens [B, N, dim] of which `valid` [B, N] are a clip's own."""
        # Padding is zero for the convolution, as it is beyond the end of a clip.
        normed = self.convolution_norm(x) * valid[..., None]
        x = x + F.gelu(self.convolution(normed.transpose(1, 2)).transpose(1, 2))
        parts = self.attention_in(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.feed_forward_norm(x))


COMPONENT = StackedTransformer
