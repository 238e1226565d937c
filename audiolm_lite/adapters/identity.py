"""Linear map of each frame, for models whose encoder is trained (NeMo's SALM, Canary-Qwen)."""

from torch import Tensor, nn

from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count


class Identity(nn.Module):
    """Map each frame of one encoder layer linearly to the LLM's embedding size, without further layers.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features; must be 1.
    llm_dim : int
        Embedding dimension H of the LLM.
    """

    def __init__(self, feature_dim: int, num_layers: int, llm_dim: int):
        super().__init__()
        require_single_layer("identity", num_layers)
        self.projection = nn.Linear(feature_dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames: one per frame."""
        return frames

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, T, D]: the frames."""
        return single_layer("identity", features)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, T, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


COMPONENT = Identity
