"""Several encoders as one: their frames are aligned in time and concatenated.

Used by NeMo's multi-encoder SALM (Chen et al. 2023, arXiv 2310.09424) and by SALMONN (Tang et al. 2023, arXiv
2310.13289).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.modeling.masks import Count, valid_mask

_ALIGN = ("nearest", "linear", "pad")


class Fused(nn.Module):
    """Encoders in parallel: their frames at the same time are concatenated into one frame.

    The layers of an encoder are concatenated on the feature axis, so the result has one layer. Parameters are named
    `encoders.<name>.*`: patterns under `trainable` select any subset of the encoders.

    Parameters
    ----------
    encoders : dict
        Configuration of each encoder by a name of your choice, in the order of concatenation.
    align : {"nearest", "linear", "pad"}
        How frames are aligned. "nearest": each frame of the result takes the frame of every encoder whose span contains
        its middle, so the frames of slow encoders are repeated. "linear": it interpolates between the two frames with
        the closest middles before and after its own. Both repeat the last frame at a clip's end. "pad": frame i is
        joined with frame i, and encoders with fewer frames have zeros at the end, as in SALMONN; all encoders must have
        the same frame rate. The LayerNorms of SALMONN, one per encoder, are part of its adapter (`window_qformer`,
        `streams`), so that stored features depend on frozen encoders only.
    grid : str, optional
        Name of the encoder whose frames define the times of the result; the one with the highest frame rate if None.
        Encoders with a higher frame rate lose frames; set their `pool` to average them instead. Not for "pad", where
        the encoder with the most frames defines the times.

    Attributes
    ----------
    feature_dim, num_layers : int
        D, the sum of layers x dimension over the encoders, and 1.
    frame_seconds : float
        Duration of one frame of the features.
    max_seconds : float
        Longest clip that all encoders accept.
    """

    def __init__(self, encoders: dict[str, dict[str, Any]], align: str = "nearest", grid: str | None = None):
        super().__init__()
        if not isinstance(encoders, Mapping) or len(encoders) < 2:
            raise ConfigError("fused: encoders must name two encoders or more: {speech: {type: ...}, audio: {...}}")
        for name in encoders:
            if not re.fullmatch(r"[A-Za-z][\w-]*", str(name), re.ASCII):  # part of the names of parameters and folders
                raise ConfigError(f"fused: encoders: {name!r:.60} is not a name of letters, digits, _ and -; rename it")
        if align not in _ALIGN:
            raise ConfigError(f"fused: align is {align!r}, it must be one of {', '.join(_ALIGN)}")
        if grid is not None and (align == "pad" or grid not in encoders):
            raise ConfigError(f'fused: grid is {grid!r}, it must be one of {list(encoders)}, or null with align "pad"')
        self.align, self.grid = align, grid
        self.encoders = nn.ModuleDict({name: build("encoders", dict(config)) for name, config in encoders.items()})
        seconds = {name: encoder.frame_seconds for name, encoder in self.encoders.items()}
        if align == "pad" and len(set(seconds.values())) > 1:
            raise ConfigError(f'fused: align "pad" needs encoders of one frame rate; their frames last {seconds} s')
        self.reference = grid or min(seconds, key=seconds.__getitem__)  # the encoder that defines the times
        self.frame_seconds = seconds[self.reference]
        self.max_seconds = min(getattr(encoder, "max_seconds", math.inf) for encoder in self.encoders.values())
        self.feature_dim = sum(encoder.num_layers * encoder.feature_dim for encoder in self.encoders.values())
        self.num_layers = 1

    def num_frames(self, samples: Count) -> Count:
        """Frames of the features for clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is longer or shorter than one of the encoders accepts.
        """
        return self._join_counts({name: encoder.num_frames(samples) for name, encoder in self.encoders.items()})

    def _join_counts(self, counts: dict[str, Count]) -> Count:
        if self.align != "pad":
            return counts[self.reference]
        values = list(counts.values())
        return torch.stack(values).amax(0) if isinstance(values[0], Tensor) else max(values)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
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
            [B, S] float32 at 16 kHz; samples after a clip's length are ignored.
        lengths : Tensor
            Samples of each clip [B] int64.

        Returns
        -------
        tuple of Tensor
            Features [B, 1, T, D] float32, zero after each clip's end, and valid frames [B] int64.

        Raises
        ------
        ValueError
            A clip is longer or shorter than one of the encoders accepts.
        """
        return self.join({name: encoder(waveforms, lengths) for name, encoder in self.encoders.items()})

    def join(self, encoded: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Align and concatenate results of the encoders, {name: (features [B, L, T, D], frames [B])}, as `forward`."""
        frames = self._join_counts({name: count for name, (_, count) in encoded.items()})
        time = int(frames.max())
        joined = []
        for name, encoder in self.encoders.items():
            features, count = encoded[name]
            features = features.transpose(1, 2).flatten(2)  # [B, T, L x D]
            if self.align == "pad":
                features = F.pad(features, (0, 0, 0, time - features.shape[1]))
            elif name != self.reference:
                features = self._resample(features, count, time, self.frame_seconds / encoder.frame_seconds)
            joined.append(features[:, :time])
        features = torch.cat(joined, dim=-1)
        return features.masked_fill(~valid_mask(frames, time)[..., None], 0)[:, None], frames

    def _resample(self, features: Tensor, count: Tensor, time: int, ratio: float) -> Tensor:
        """Frames [B, time, D], one every `ratio` frames of features [B, T, D] with `count` [B] valid frames."""
        # float64: rounding must not change the frame of a middle on the border of two frames. On the CPU: not every
        # device has float64.
        middle = (torch.arange(time, device="cpu", dtype=torch.float64) + 0.5) * ratio  # [T]
        last = (count - 1)[:, None]
        if self.align == "nearest":
            return _take(features, torch.minimum((middle + 1e-9).long().to(last.device)[None], last))
        position = (middle - 0.5).clamp(min=0)
        floor = position.long()
        weight = (position - floor).to(features.dtype).to(features.device)[None]  # [1, T]
        floor = floor.to(last.device)[None]
        before = torch.minimum(floor, last)  # [B, T]
        weight = torch.where(floor < last, weight, 0)[..., None]
        return torch.lerp(_take(features, before), _take(features, torch.minimum(before + 1, last)), weight)


def _take(features: Tensor, index: Tensor) -> Tensor:
    """Frames [B, T, D] of features [B, T', D] at indices [B, T]."""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))


COMPONENT = Fused
