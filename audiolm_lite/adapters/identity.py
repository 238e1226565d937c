"""One linear map a frame: what remains of an adapter when the encoder itself is trained (NeMo's SALM, Canary-Qwen)."""

from torch import Tensor, nn

from audiolm_lite.adapters.frames import Count, one_layer, require_one_layer


class Identity(nn.Module):
    """Pass every frame of one encoder layer on, through a linear map to the LLM's embedding size.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers in the features; this adapter reads exactly one.
    llm_dim : int
        Embedding dimension H of the LLM.
    """

    def __init__(self, feature_dim: int, num_layers: int, llm_dim: int):
        super().__init__()
        require_one_layer("identity", num_layers)
        self.projection = nn.Linear(feature_dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames: one each."""
        return frames

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, T, D]: the frames themselves."""
        return one_layer("identity", features)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, T, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


PART = Identity
