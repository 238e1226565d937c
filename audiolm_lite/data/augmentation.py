"""Augmentation of clips; its random draws depend on seed, epoch and clip only, in any process and after any restart.

In stored features, spans of time and complete layers are masked. Live audio is perturbed in speed and masked in time
and frequency by SpeechBrain's augmenters (SpecAugment, Park et al. 2019, arXiv 1904.08779, in the time domain; speed
perturbation, Ko et al. 2015).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from speechbrain.augment.time_domain import DropChunk, DropFreq, SpeedPerturb
from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError

ON_FEATURES = {"time_masks": 2, "time_share": 0.1, "layer_mask": 0.1}
ON_AUDIO = {"speeds": [90, 100, 110], "time_masks": 2, "frequency_masks": 2}


class Augmentation:
    """Augment clips of the training set, stored features [L, T, D] or samples [S].

    Parameters
    ----------
    settings : mapping
        For stored features: `time_masks` (number of spans, each up to `time_share` of the clip) and `layer_mask`
        (probability that a layer is masked; at least one layer is kept). Masked values become the clip's mean of that
        layer. For live audio: `speeds` (percent, one is drawn), and the largest numbers of `time_masks` (spans of up to
        60 ms that become silent) and of `frequency_masks` (bands that are filtered out). All settings have defaults.
    seed : int
        Seed of the draws.
    num_frames : callable, optional
        Encoder frames from samples, for live audio. None: clips are stored features.

    Attributes
    ----------
    epoch : int or None
        Epoch of the draws, to be set before the workers of a DataLoader start. None, as initially: no augmentation.

    Raises
    ------
    ConfigError
        A setting that this kind of clip does not have.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int, num_frames: Callable[[int], int] | None = None):
        self.seed, self.num_frames = seed, num_frames
        self.epoch: int | None = None
        defaults = ON_FEATURES if num_frames is None else ON_AUDIO
        for name in settings:
            if name not in defaults:
                kind = "stored features" if num_frames is None else "live audio (train_encoder: true)"
                raise ConfigError(f"augmentation: no entry {name!r} for {kind}; it takes {', '.join(defaults)}")
            if not isinstance(settings[name], type(defaults[name])) and not isinstance(settings[name], int):
                raise ConfigError(
                    f"augmentation: {name} is {settings[name]!r}; write a value such as {defaults[name]!r}"
                )
        self.settings = {**defaults, **settings}
        if num_frames is not None:
            self.speed = SpeedPerturb(SAMPLE_RATE, list(self.settings["speeds"]))
            self.masks = torch.nn.ModuleList()
            if count := self.settings["time_masks"]:
                self.masks.append(_Chunks(drop_length_high=1000, drop_count_low=0, drop_count_high=count))
            if count := self.settings["frequency_masks"]:
                self.masks.append(DropFreq(drop_freq_count_low=0, drop_freq_count_high=count))

    def __call__(self, clip: Tensor, name: str) -> Tensor:
        """Return the augmented clip; the draws depend on `name`."""
        if self.epoch is None:
            return clip
        text = f"{self.seed}/{self.epoch}/{name}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
        with torch.random.fork_rng(devices=[]):  # SpeechBrain's augmenters draw from the global generator
            torch.manual_seed(seed)
            return self._mask(clip) if self.num_frames is None else self._perturb(clip, self.num_frames)

    def _mask(self, features: Tensor) -> Tensor:
        """Replace spans of time and layers of features [L, T, D] by their mean."""
        layers, time, _ = features.shape
        masked = torch.zeros(layers, time, dtype=torch.bool)
        for _ in range(self.settings["time_masks"]):
            width = int(torch.rand(()) * (self.settings["time_share"] * time + 1))
            start = int(torch.rand(()) * (time - width + 1))
            masked[:, start : start + width] = True
        dropped = torch.rand(layers) < self.settings["layer_mask"]
        dropped[torch.randint(layers, ())] = False
        masked |= dropped[:, None]
        mean = features.float().mean(dim=1, keepdim=True).to(features.dtype)
        return torch.where(masked[..., None], mean, features)

    def _perturb(self, samples: Tensor, num_frames: Callable[[int], int]) -> Tensor:
        """Change the speed of samples [S] and mask them in time and frequency."""
        changed = self.speed(samples[None])
        try:
            num_frames(changed.shape[1])
        except ValueError:  # too long for the encoder at this speed, or too short
            changed = samples[None]
        for mask in self.masks:
            changed = mask(changed)
        return changed[0]


class _Chunks(DropChunk):
    """SpeechBrain's augmenter for clips of equal length: it also takes the relative length of each clip."""

    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms, torch.ones(len(waveforms)))
