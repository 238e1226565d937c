"""Several encoders as one: their frames aligned in time and concatenated.

As in NeMo's multi-encoder SALM (Chen et al. 2023, arXiv 2310.09424) and in SALMONN (Tang et al. 2023, arXiv
2310.13289).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.contract import valid_mask

_ALIGN = ("nearest", "linear", "pad")


class Fused(nn.Module):
    """Encoders side by side: what each says of a moment becomes one frame.

    An encoder's layers lie beside each other on the feature axis, so the result has one layer. Parameters are called
    `encoders.<name>.*`: patterns under `trainable` choose any subset of the encoders.

    Parameters
    ----------
    encoders : dict
        Configuration of each encoder by a name of one's choice, in the order of concatenation.
    align : {"nearest", "linear", "pad"}
        How frames find each other. "nearest": a frame of the result takes that frame of every encoder in whose span its
        middle lies, so slow encoders' frames are repeated; "linear": it interpolates between the two frames whose
        middles are around its own. At a clip's end the last frame goes on. "pad": frame i goes with frame i, and the
        encoders with fewer frames have zeros at the end, as in SALMONN; all must have the same frame rate. SALMONN's
        LayerNorms, one for each encoder, are in its adapter (`window_qformer`, `streams`), so that stored features are
        the frozen encoders' alone.
    grid : str, optional
        Name of the encoder whose frames give the result's times; the one of the highest frame rate if None. An encoder
        with a higher rate than that loses frames; its own `pool` averages them instead. Not for "pad", where the
        encoder with the most frames gives them.

    Attributes
    ----------
    feature_dim, num_layers : int
        D, the sum over encoders of layers x dimension; and 1.
    frame_seconds : float
        Duration of one frame of the result.
    max_seconds : float
        Longest clip that all encoders accept.
    """

    def __init__(self, encoders: dict[str, dict[str, Any]], align: str = "nearest", grid: str | None = None):
        super().__init__()
        if not isinstance(encoders, Mapping) or len(encoders) < 2:
            raise ConfigError("fused: encoders must name two encoders or more: {speech: {type: ...}, audio: {...}}")
        if align not in _ALIGN:
            raise ConfigError(f"fused: align {align!r} is none of {', '.join(_ALIGN)}")
        if grid is not None and (align == "pad" or grid not in encoders):
            raise ConfigError(f'fused: grid {grid!r} must be one of {list(encoders)}, and has no meaning with "pad"')
        self.align, self.grid = align, grid
        self.encoders = nn.ModuleDict({name: build("encoders", dict(config)) for name, config in encoders.items()})
        seconds = {name: encoder.frame_seconds for name, encoder in self.encoders.items()}
        if align == "pad" and len(set(seconds.values())) > 1:
            raise ConfigError(f'fused: align "pad" needs encoders of one frame rate; theirs last {seconds} s each')
        self.clock = grid or min(seconds, key=seconds.get)  # the encoder that gives the times
        self.frame_seconds = seconds[self.clock]
        self.max_seconds = min(getattr(encoder, "max_seconds", math.inf) for encoder in self.encoders.values())
        self.feature_dim = sum(encoder.num_layers * encoder.feature_dim for encoder in self.encoders.values())
        self.num_layers = 1

    def num_frames(self, samples: Tensor | int) -> Tensor | int:
        """Frames of the result for clips of so many samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is longer or shorter than one of the encoders takes.
        """
        return self._join_counts({name: encoder.num_frames(samples) for name, encoder in self.encoders.items()})

    def _join_counts(self, counts: dict[str, Tensor | int]) -> Tensor | int:
        if self.align != "pad":
            return counts[self.clock]
        values = list(counts.values())
        return torch.stack(values).amax(0) if isinstance(values[0], Tensor) else max(values)

    def identity(self) -> dict[str, Any]:
        """All that decides this encoder's features, for JSON: two encoders with equal identity give equal features."""
        return {
            "type": "fused",
            "encoders": {name: encoder.identity() for name, encoder in self.encoders.items()},
            "align": self.align,
            "grid": self.grid,
            "frame_seconds": self.frame_seconds,
        }

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Parameters
        ----------
        waveforms : Tensor
            [B, S], float32 at 16 kHz; what lies after a clip's length is ignored.
        lengths : Tensor
            Samples of each clip [B], int64.

        Returns
        -------
        tuple of Tensor
            Features [B, 1, T, D], zero after each clip's end, and valid frames [B], int64.

        Raises
        ------
        ValueError
            A clip is longer or shorter than one of the encoders takes.
        """
        return self.join({name: encoder(waveforms, lengths) for name, encoder in self.encoders.items()})

    def join(self, encoded: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Align and concatenate what the encoders gave: {name: (features [B, L, T, D], frames [B])} -> as `forward`."""
        frames = self._join_counts({name: count for name, (_, count) in encoded.items()})
        time = int(frames.max())
        joined = []
        for name, encoder in self.encoders.items():
            features, count = encoded[name]
            features = features.transpose(1, 2).flatten(2)  # [B, T, L x D]
            if self.align == "pad":
                features = F.pad(features, (0, 0, 0, time - features.shape[1]))
            elif name != self.clock:
                features = self._resample(features, count, time, self.frame_seconds / encoder.frame_seconds)
            joined.append(features[:, :time])
        features = torch.cat(joined, dim=-1)
        return features.masked_fill(~valid_mask(frames, time)[..., None], 0)[:, None], frames

    def _resample(self, features: Tensor, count: Tensor, time: int, ratio: float) -> Tensor:
        """Frames [B, T', D], `count` [B] of them valid, at `time` moments that are `ratio` of their frames apart."""
        # float64: a middle that falls on the border of two frames must not depend on rounding.
        middle = (torch.arange(time, device=features.device, dtype=torch.float64) + 0.5) * ratio  # [T]
        last = (count - 1)[:, None]
        if self.align == "nearest":
            return _take(features, torch.minimum((middle + 1e-9).long()[None], last))
        place = torch.minimum((middle - 0.5).clamp(min=0)[None], last.double())  # [B, T]
        before = place.long()
        weight = (place - before).to(features.dtype)[..., None]
        return torch.lerp(_take(features, before), _take(features, torch.minimum(before + 1, last)), weight)


def _take(features: Tensor, index: Tensor) -> Tensor:
    """Frames [B, T, D] of features [B, T', D] at indices [B, T]."""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))


PART = Fused
