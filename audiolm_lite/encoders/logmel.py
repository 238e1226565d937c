"""Whisper's log-mel spectrogram (Radford et al. 2022, arXiv 2212.04356), the input of its encoder.

`LogMel` is an encoder with one layer and no weights. A store of its features caches the inputs of models whose encoder
is trained (Voxtral).
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from audiolm_lite.audio.reading import AUDIO_RULES, SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.clip_length import SPLIT, check_clip_length
from audiolm_lite.modeling.masks import Count, valid_mask


def log_mel(waveforms: Tensor, lengths: Tensor, filters: Tensor, n_fft: int, hop: int) -> tuple[Tensor, Tensor]:
    """Compute log-mel spectrograms. Each clip is reflected at its own end and scaled by its own maximum, as if alone.

    Parameters
    ----------
    waveforms : Tensor
        [B, S] at 16 kHz; samples after a clip's length are ignored.
    lengths : Tensor
        Samples of each clip [B] int64, each more than n_fft / 2.
    filters : Tensor
        Mel filters [n_fft / 2 + 1, mels] float32.
    n_fft, hop : int
        Samples of an FFT window, and between the starts of consecutive windows.

    Returns
    -------
    tuple of Tensor
        Spectrograms [B, mels, M] float32, zero after each clip's end, and mask of the valid frames [B, M] bool. Frame i
        has its centre at sample i * hop and is valid if the clip has that sample. For multiples of the hop these are
        the frames that Whisper keeps.

    Examples
    --------
    >>> waveforms, lengths = torch.randn(2, 1600), torch.tensor([1600, 800])
    >>> mel, valid = log_mel(waveforms, lengths, torch.ones(201, 80) / 201, n_fft=400, hop=160)
    >>> mel.shape, valid.sum(1)
    (torch.Size([2, 80, 10]), tensor([10,  5]))
    """
    half, last = n_fft // 2, (lengths - 1)[:, None]
    index = (torch.arange(waveforms.shape[1] + 2 * half, device=waveforms.device) - half).abs()
    index = torch.where(index > last, 2 * last - index, index).clamp(min=0)  # [B, S + 2 * half]
    with torch.autocast(waveforms.device.type, enabled=False):  # power spectra need float32
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
    """Log-mel spectrograms as features [B, 1, T, mels], computed as by WhisperFeatureExtractor of transformers.

    Parameters
    ----------
    mels : int
        Mel bands: 80, or 128 for Whisper large-v3 and Voxtral.
    padding : {"full", "exact"}
        "full": clips are padded with zeros to `window_seconds`, as required by Whisper and Voxtral (3000 frames).
        "exact": only the clip's own frames.
    window_seconds : float
        Longest clip; with "full" also the length of every clip.

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
            raise ConfigError(f"logmel: padding is {padding!r}, it must be 'full' or 'exact'")
        if window_seconds <= 0:
            raise ConfigError(f"logmel: window_seconds is {window_seconds}; it must be greater than 0")
        extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
        self.mel_filters = torch.from_numpy(extractor.mel_filters.astype("float32"))
        self.n_fft, self.hop, self.padding = extractor.n_fft, extractor.hop_length, padding
        self.max_samples = round(window_seconds * SAMPLE_RATE)
        self.feature_dim, self.num_layers = mels, 1
        self.frame_seconds, self.max_seconds = self.hop / SAMPLE_RATE, self.max_samples / SAMPLE_RATE

    def num_frames(self, samples: Count) -> Count:
        """Frames for clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is longer than `window_seconds`, or too short for padding "exact".
        """
        remedy = f"raise window_seconds where the model accepts more, or {SPLIT}"
        # A shorter clip cannot be reflected at its ends by half an FFT window.
        least = self.n_fft // 2 + 1 if self.padding == "exact" else 1
        check_clip_length("logmel", samples, least, self.max_samples, remedy)
        if self.padding == "full":
            full = self.max_samples
            samples = torch.full_like(samples, full) if isinstance(samples, Tensor) else full
        return -(-samples // self.hop)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
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
        """Map waveforms [B, S] of `lengths` [B] samples to features [B, 1, T, mels] and frames [B].

        Raises
        ------
        ValueError
            See `num_frames`.
        """
        lengths = lengths.to(waveforms.device)
        frames = self.num_frames(lengths)
        if self.padding == "full":
            waveforms = waveforms.masked_fill(~valid_mask(lengths, waveforms.shape[1]), 0)[:, : self.max_samples]
            waveforms = nn.functional.pad(waveforms, (0, self.max_samples - waveforms.shape[1]))
            lengths = torch.full_like(lengths, self.max_samples)
        mel, _ = log_mel(waveforms[:, : int(lengths.max())], lengths, self.mel_filters, self.n_fft, self.hop)
        return mel.transpose(1, 2)[:, None], frames


COMPONENT = LogMel
