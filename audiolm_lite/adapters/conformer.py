"""Conformer adapter (SALM, Chen et al. 2023, arXiv 2310.09424; Conformer, Gulati et al. 2020, arXiv 2005.08100)."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.adapters.single_layer import require_single_layer, single_layer
from audiolm_lite.modeling.masks import Count, valid_mask


class ConformerAdapter(nn.Module):
    """Convolutional subsampling, Conformer blocks with relative positions, and a linear map to the LLM.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    num_layers : int
        Encoder layers L of the features; must be 1.
    llm_dim : int
        Embedding dimension H of the LLM.
    dim, heads : int
        Width and attention heads of the blocks.
    blocks : int
        Number of Conformer blocks.
    kernel : int
        Kernel size of the depthwise convolution in the blocks, in frames; odd.
    expansion : int
        Width of the feed-forward layers as a multiple of `dim`.
    factor : int
        Frames per audio token: 1 (a linear map in place of the subsampling), 2, 4 or 8.
    subsampling : {"dw_striding", "striding"}
        Depthwise separable or full convolutions with stride 2.
    channels : int
        Channels of the convolutions of the subsampling.
    """

    def __init__(
        self,
        feature_dim: int,
        num_layers: int,
        llm_dim: int,
        dim: int = 512,
        heads: int = 8,
        blocks: int = 2,
        kernel: int = 9,
        expansion: int = 4,
        factor: int = 1,
        subsampling: str = "dw_striding",
        channels: int = 256,
    ):
        super().__init__()
        require_single_layer("conformer", num_layers)
        if dim % heads or dim % 2:
            raise ValueError(f"conformer: dim is {dim}; it must be even and a multiple of heads, which is {heads}.")
        if kernel % 2 == 0:
            raise ValueError(f"conformer: kernel is {kernel}; it must be odd.")
        self.factor, self.dim = factor, dim
        if factor == 1:
            self.subsampling = nn.Linear(feature_dim, dim)
        else:
            self.subsampling = ConvSubsampling(feature_dim, dim, factor, subsampling, channels)
        self.blocks = nn.ModuleList(ConformerBlock(dim, heads, kernel, expansion * dim) for _ in range(blocks))
        self.projection = nn.Linear(dim, llm_dim)

    def num_tokens(self, frames: Count) -> Count:
        """Audio tokens of a clip with `frames` valid frames."""
        return -(-frames // self.factor)

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """Input of `projection` [B, N, dim] for features [B, 1, T, D] with `frames` [B] valid frames."""
        x = single_layer("conformer", features)
        x = self.subsampling(x) if self.factor == 1 else self.subsampling(x, frames)
        mask = valid_mask(self.num_tokens(frames), x.shape[1])
        x = x * math.sqrt(self.dim)  # the position table is not scaled
        positions = relative_positions(x.shape[1], self.dim, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, positions, mask)
        return x

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, 1, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        return self.projection(self.hidden(features, frames)), self.num_tokens(frames)


class ConvSubsampling(nn.Module):
    """Convolutions with stride 2 over time and features, which reduce both by `factor`, rounded up.

    Frames after a clip's end are set to zero before each convolution, as the padding of a clip alone.

    Parameters
    ----------
    feature_dim, dim : int
        Width of a frame before and after.
    factor : int
        2, 4 or 8.
    kind : {"dw_striding", "striding"}
    channels : int
    """

    def __init__(self, feature_dim: int, dim: int, factor: int, kind: str, channels: int):
        super().__init__()
        if factor not in (2, 4, 8):
            raise ValueError(f"conformer: factor is {factor}; it must be 1, 2, 4 or 8.")
        if kind not in ("dw_striding", "striding"):
            raise ValueError(f'conformer: subsampling is {kind!r}, it must be "dw_striding" or "striding".')
        convolutions = factor.bit_length() - 1
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(convolutions - 1):
            if kind == "dw_striding":
                layers += [
                    nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels),
                    nn.Conv2d(channels, channels, 1),
                ]
            else:
                layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            layers.append(nn.ReLU())
        self.conv = nn.Sequential(*layers)
        self.out = nn.Linear(channels * -(-feature_dim // factor), dim)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """Map frames x [B, T, D], of which `frames` [B] are valid, to [B, ceil(T / factor), dim]."""
        x = x[:, None]  # [B, 1, T, D]
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                x = x * valid_mask(frames, x.shape[2])[:, None, :, None]
                frames = -(-frames // 2)
            x = layer(x)
        return self.out(x.transpose(1, 2).flatten(2))


class ConformerBlock(nn.Module):
    """Half-step feed-forward layer, self-attention, convolution, half-step feed-forward layer, norm.

    Parameters
    ----------
    dim, heads, kernel : int
        See `ConformerAdapter`.
    hidden_dim : int
        Width of the feed-forward layers.
    """

    def __init__(self, dim: int, heads: int, kernel: int, hidden_dim: int):
        super().__init__()
        self.feed_forward_1 = _feed_forward(dim, hidden_dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, heads)
        self.convolution = Convolution(dim, kernel)
        self.feed_forward_2 = _feed_forward(dim, hidden_dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, T, dim] to the same shape; positions [2T - 1, dim], mask [B, T] True at valid frames."""
        x = x + 0.5 * self.feed_forward_1(x)
        x = x + self.attention(self.attention_norm(x), positions, mask)
        x = x + self.convolution(x, mask)
        x = x + 0.5 * self.feed_forward_2(x)
        return self.norm(x)


def _feed_forward(dim: int, hidden_dim: int) -> nn.Sequential:
    layers = {
        "norm": nn.LayerNorm(dim),
        "expand": nn.Linear(dim, hidden_dim),
        "swish": nn.SiLU(),
        "reduce": nn.Linear(hidden_dim, dim),
    }
    return nn.Sequential(OrderedDict(layers))


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Transformer-XL, Dai et al. 2019, arXiv 1901.02860).

    Parameters
    ----------
    dim, heads : int
        Width and number of heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.position = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, dim // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, dim // heads))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Attend within x [B, T, dim]; positions [2T - 1, dim], mask [B, T] True at valid keys."""
        time = x.shape[1]
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, d]
            for linear in (self.query, self.key, self.value)
        )
        distances = self.position(positions).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # [heads, 2T - 1, d]
        scores = (query + self.position_bias[:, None]) @ distances.transpose(1, 2)  # [B, heads, T, 2T - 1]
        index = torch.arange(time, device=x.device)
        index = (time - 1 - index[:, None] + index).expand(*scores.shape[:2], -1, -1)  # row of distance i - j
        bias = scores.gather(-1, index) / math.sqrt(query.shape[-1])
        bias = bias.masked_fill(~mask[:, None, None], -torch.inf)
        attended = F.scaled_dot_product_attention(query + self.content_bias[:, None], key, value, attn_mask=bias)
        return self.out(attended.transpose(1, 2).flatten(2))


def relative_positions(time: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoidal embeddings [2 * time - 1, dim] of the distances time - 1 down to 1 - time.

    Examples
    --------
    >>> relative_positions(2, 2, torch.device("cpu"))  # distances 1, 0 and -1
    tensor([[ 0.8415,  0.5403],
            [ 0.0000,  1.0000],
            [-0.8415,  0.5403]])
    """
    distance = torch.arange(time - 1, -time, -1, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * -(math.log(10000.0) / dim))
    return torch.stack([(distance * rate).sin(), (distance * rate).cos()], dim=-1).flatten(1)


class Convolution(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution of valid frames.

    Parameters
    ----------
    dim, kernel : int
        Channels, and kernel size of the depthwise convolution in frames.
    """

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * dim)  # a pointwise convolution is a linear map of each frame
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.reduce = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, T, dim] to the same shape; mask [B, T] True at valid frames."""
        x = F.glu(self.expand(self.norm(x))).masked_fill(~mask[..., None], 0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        # Padding must not change the statistics of a training batch.
        x = torch.zeros_like(x).masked_scatter(mask[..., None], self.batch_norm(x[mask]).to(x.dtype))
        return self.reduce(F.silu(x))


COMPONENT = ConformerAdapter
