"""Frame-stacking linear adapter (SLAM-ASR, Ma et al. 2024, arXiv 2402.08846) and its convolutional variant."""

import torch
from torch import Tensor, nn

from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count


class LinearStack(nn.Module):
    """Concatenate `stride` consecutive frames of one encoder layer and map them to the LLM's embedding size.

    The last frames, up to `stride` - 1, that do not fill a window are dropped, as published.

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
    hidden_dim : int
        Width of the hidden layer.
    conv : bool
        Apply a convolution with kernel and stride `stride` to D channels first (SLAM-LLM's "cov1d" projector).
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        stride: int = 5,
        hidden_dim: int = 2048,
        conv: bool = False,
    ):
        super().__init__()
        require_single_layer("linear", num_layers)
        self.stride = stride
        # A convolution with equal kernel and stride is a linear map of the concatenated frames.
        self.conv = nn.Linear(stride * feature_dim, feature_dim) if conv else None
        self.stacked = nn.Linear(feature_dim if conv else stride * feature_dim, hidden_dim)
        self.projection = nn.Linear(hidden_dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames."""
        return frames // self.stride

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, hidden_dim] for features [B, 1, T, D]; counted windows have no padding."""
        x = single_layer("linear", features)
        batch, time, dim = x.shape
        tokens = time // self.stride
        windows = x[:, : tokens * self.stride].reshape(batch, tokens, self.stride * dim)
        if self.conv is not None:
            windows = torch.relu(self.conv(windows))
        return torch.relu(self.stacked(windows))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


COMPONENT = LinearStack
