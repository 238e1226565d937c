"""Frame-stacking linear adapter (SLAM-ASR, Ma et al. 2024, arXiv 2402.08846)."""

import torch
from torch import Tensor, nn


class LinearStack(nn.Module):
    """Concatenate `stride` consecutive frames of one encoder layer and map them to the LLM's embedding size.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers in the features; this adapter reads exactly one.
    llm_dim : int
        Embedding dimension H of the LLM.
    stride : int
        Frames per audio token; frames left over at the end are dropped, as published.
    hidden_dim : int
        Width of the hidden layer.
    """

    def __init__(self, feature_dim: int, num_layers: int, llm_dim: int, stride: int = 5, hidden_dim: int = 2048):
        super().__init__()
        if num_layers != 1:
            raise ValueError(
                f"linear: reads one encoder layer, the encoder gives {num_layers}; "
                "choose one in the encoder's block (layers: [-1] is the last)."
            )
        self.stride = stride
        self.stacked = nn.Linear(stride * feature_dim, hidden_dim)
        self.projection = nn.Linear(hidden_dim, llm_dim)

    def num_tokens(self, frames: int | Tensor) -> int | Tensor:
        """Audio tokens of a clip with `frames` valid frames."""
        return frames // self.stride

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, hidden_dim] for features [B, 1, T, D]; a whole window never reaches padding."""
        batch, layers, time, dim = features.shape
        if layers != 1:
            raise ValueError(f"linear: features have {layers} layers, this adapter reads one.")
        tokens = time // self.stride
        windows = features[:, 0, : tokens * self.stride].reshape(batch, tokens, self.stride * dim)
        return torch.relu(self.stacked(windows))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


PART = LinearStack
