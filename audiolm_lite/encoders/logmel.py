"""Whisper's log-mel spectrogram (Radford et al. 2022, arXiv 2212.04356): what its encoder reads.

As a part of its own it is an "encoder" with one layer and no weights. A store of its features is a cache of model
inputs for recipes that train through the encoder (Voxtral).
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from audiolm_lite.audio.reading import AUDIO_RULES, SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError


def log_mel(waveforms: Tensor, lengths: Tensor, filters: Tensor, n_fft: int, hop: int) -> tuple[Tensor, Tensor]:
    """Compute log-mel spectrograms; every clip is mirrored at its own end and scaled by its own maximum, as if alone.

    Parameters
    ----------
    waveforms : Tensor
        [B, S], 16 kHz; what lies after a clip's length is ignored.
    lengths : Tensor
        Samples of each clip [B], int64, each more than n_fft / 2.
    filters : Tensor
        Mel filters [n_fft / 2 + 1, mels], float32.
    n_fft, hop : int
        Samples of an FFT window and from one window to the next.

    Returns
    -------
    tuple of Tensor
        Spectrograms [B, mels, M], float32, zero after each clip's end, and which frames are valid [B, M]. Frame i is
        centred on sample i * hop and exists when that sample does; for whole hops these are the frames that Whisper
        keeps.
    """
    half, last = n_fft // 2, (lengths - 1)[:, None]
    index = (torch.arange(waveforms.shape[1] + 2 * half, device=waveforms.device) - half).abs()
    index = torch.where(index > last, 2 * last - index, index).clamp(min=0)  # [B, S + 2 * half]
    with torch.autocast(waveforms.device.type, enabled=False):  # 16 bits are too few for power spectra
        padded = waveforms.float().gather(1, index)
        window = torch.hann_window(n_fft, device=padded.device)
        spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
        count = -(-waveforms.shape[1] // hop)
        spectrum = spectrum[..., :count]
        power = spectrum.real.square() + spectrum.imag.square()  # [B, n_fft / 2 + 1, M]
        mel = (filters.to(power.device).T @ power).clamp(min=1e-10).log10()
        valid = torch.arange(count, device=mel.device) * hop < lengths[:, None]
        mel = mel.masked_fill(~valid[:, None], -torch.inf)
        mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
        return mel.masked_fill(~valid[:, None], 0), valid


class LogMel(nn.Module):
    """Log-mel spectrograms as features [B, 1, T, mels], by the rules of transformers' WhisperFeatureExtractor.

    Parameters
    ----------
    mels : int
        Mel bands: 80, or 128 for Whisper large-v3 and Voxtral.
    padding : {"full", "exact"}
        "full": clips are padded with silence to `window_seconds`, as Whisper and Voxtral want them (3000 frames).
        "exact": the clip's own frames.
    window_seconds : float
        Longest clip, and with "full" the length of all.

    Attributes
    ----------
    feature_dim, num_layers : int
        Mel bands, and 1.
    frame_seconds, max_seconds : float
        Duration of a frame; longest clip accepted.
    """

    def __init__(self, mels: int = 128, padding: str = "full", window_seconds: float = 30.0):
        super().__init__()
        if padding not in ("full", "exact"):
            raise ConfigError(f"logmel: padding {padding!r} is none of 'full', 'exact'")
        if window_seconds <= 0:
            raise ConfigError(f"logmel: window_seconds is {window_seconds}; it must be above 0")
        extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
        self.mel_filters = torch.from_numpy(extractor.mel_filters).float()
        self.n_fft, self.hop, self.padding = extractor.n_fft, extractor.hop_length, padding
        self.max_samples = round(window_seconds * SAMPLE_RATE)
        self.feature_dim, self.num_layers = mels, 1
        self.frame_seconds, self.max_seconds = self.hop / SAMPLE_RATE, self.max_samples / SAMPLE_RATE

    def num_frames(self, samples: Tensor | int) -> Tensor | int:
        """Frames of clips of so many samples; raises ValueError for clips longer or shorter than it takes."""
        many = isinstance(samples, Tensor)
        self._check(*((int(samples.min()), int(samples.max())) if many else (samples, samples)))
        if self.padding == "full":
            samples = torch.full_like(samples, self.max_samples) if many else self.max_samples
        return -(-samples // self.hop)

    def identity(self) -> dict[str, Any]:
        """All that decides the features, for JSON."""
        return {
            "type": "logmel",
            "mels": self.feature_dim,
            "n_fft": self.n_fft,
            "hop": self.hop,
            "padding": self.padding,
            "window_seconds": self.max_seconds,
            "frame_seconds": self.frame_seconds,
            "audio": AUDIO_RULES,
        }

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map waveforms [B, S] of `lengths` [B] to features [B, 1, T, mels] and frames [B]; ValueError as above."""
        lengths = lengths.to(waveforms.device)
        frames = self.num_frames(lengths)
        if self.padding == "full":
            silent = torch.arange(waveforms.shape[1], device=waveforms.device) >= lengths[:, None]
            waveforms = waveforms.masked_fill(silent, 0)[:, : self.max_samples]
            waveforms = nn.functional.pad(waveforms, (0, self.max_samples - waveforms.shape[1]))
            lengths = torch.full_like(lengths, self.max_samples)
        mel, _ = log_mel(waveforms[:, : int(lengths.max())], lengths, self.mel_filters, self.n_fft, self.hop)
        return mel.transpose(1, 2)[:, None], frames

    def _check(self, shortest: int, longest: int) -> None:
        if longest > self.max_samples:
            raise ValueError(
                f"clip of {longest / SAMPLE_RATE:.2f} s is longer than the {self.max_seconds:g} s of window_seconds; "
                "raise it where the model takes more, or split the clip into segments (start and duration in the "
                "manifest)"
            )
        # A shorter clip cannot be mirrored at its ends by half an FFT window.
        least = self.n_fft // 2 + 1 if self.padding == "exact" else 1
        if shortest < least:
            raise ValueError(
                f"clip of {shortest} samples is shorter than the {least} that padding 'exact' needs; drop it from the "
                "manifest"
            )


PART = LogMel
