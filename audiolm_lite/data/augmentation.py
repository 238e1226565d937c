"""Augmentation of clips, decided by (seed, epoch, clip) alone: any process and any restart draws the same.

Stored features lose stretches of time and whole layers; live audio changes its speed and loses stretches of time and
bands of frequencies, by SpeechBrain's augmenters (SpecAugment, Park et al. 2019, arXiv 1904.08779, in the time domain;
speed perturbation, Ko et al. 2015).
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
    """Changes clips of training, stored features [L, T, D] or samples [S].

    Parameters
    ----------
    settings : mapping
        Of stored features: `time_masks` (stretches of up to `time_share` of the clip each) and `layer_mask`
        (probability of a layer; one always stays). What is masked becomes the clip's mean of that layer.
        Of live audio: `speeds` (percent, one is drawn), `time_masks` (stretches of up to 60 ms that fall silent) and
        `frequency_masks` (bands that are filtered out), each at most. What is not given has its default.
    seed : int
    encoder_frames : callable, optional
        Frames from samples, of the encoder that hears live audio; None: clips are stored features.

    Attributes
    ----------
    epoch : int or None
        Of the draws; set before the workers of a DataLoader start. None, as at first: clips stay what they are.

    Raises
    ------
    ConfigError
        A setting that there is not for this kind of clip.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int, encoder_frames: Callable[[int], int] | None = None):
        self.seed, self.epoch, self.encoder_frames = seed, None, encoder_frames
        defaults = ON_FEATURES if encoder_frames is None else ON_AUDIO
        for name in settings:
            if name not in defaults:
                kind = "stored features" if encoder_frames is None else "live audio (train_encoder: true)"
                raise ConfigError(f"augmentation: no entry {name!r} for {kind}; it takes {', '.join(defaults)}")
        self.settings = {**defaults, **settings}
        if encoder_frames is not None:
            self.speed = SpeedPerturb(SAMPLE_RATE, list(self.settings["speeds"]))
            self.masks = torch.nn.ModuleList()
            if count := self.settings["time_masks"]:
                self.masks.append(_Chunks(drop_length_high=1000, drop_count_low=0, drop_count_high=count))
            if count := self.settings["frequency_masks"]:
                self.masks.append(DropFreq(drop_freq_count_low=0, drop_freq_count_high=count))

    def __call__(self, clip: Tensor, name: str) -> Tensor:
        """Change the clip of this name."""
        if self.epoch is None:
            return clip
        text = f"{self.seed}/{self.epoch}/{name}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
        with torch.random.fork_rng(devices=[]):  # SpeechBrain's augmenters draw from the global generator
            torch.manual_seed(seed)
            return self._mask(clip) if self.encoder_frames is None else self._perturb(clip)

    def _mask(self, features: Tensor) -> Tensor:
        """Features [L, T, D] with stretches and layers at their mean."""
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

    def _perturb(self, samples: Tensor) -> Tensor:
        """Samples [S] at another speed, with gaps in time and frequency."""
        changed = self.speed(samples[None])
        try:
            self.encoder_frames(changed.shape[1])
        except ValueError:  # slowed down it is longer than the encoder takes, or sped up too short
            changed = samples[None]
        for mask in self.masks:
            changed = mask(changed)
        return changed[0]


class _Chunks(DropChunk):
    """SpeechBrain's, which also asks for the length of each clip as a share of the longest."""

    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms, torch.ones(len(waveforms)))
