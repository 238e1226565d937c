"""Speaker embeddings of short segments by ECAPA-TDNN (Desplanques et al. 2020, arXiv 2005.07143).

NeMo's SALM (Chen et al. 2023, arXiv 2310.09424) concatenates them to the frames of its speech encoder.
"""

from typing import Any

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import Tensor, nn

from audiolm_lite.audio.reading import AUDIO_RULES, SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.checkpoints import read_checkpoint, weights_digest
from audiolm_lite.encoders.clip_length import check_clip_length
from audiolm_lite.modeling.masks import Count, valid_mask


class SpeakerEncoder(nn.Module):
    """One speaker embedding per segment of a clip, which depends on the samples of that segment only.

    Segments do not overlap, except for the last one: it starts earlier, so that it ends with the clip and has the
    length of the others. Padding the segment instead would change its embedding. Batch norm uses its running statistics
    in training too, so that a clip does not depend on its batch.

    Parameters
    ----------
    source : str or None
        Name on the Hugging Face hub or folder of a model published by SpeechBrain, or its `embedding_model.ckpt`. The
        folder's `hyperparams.yaml` can name code and is never read. None for random weights.
    segment_seconds : float
        Length of a segment in seconds.
    mels : int
        Bins of the log-mel spectrogram.
    channels, kernel_sizes, dilations : list of int
        Sizes of ECAPA-TDNN's blocks. These and the following defaults are those of speechbrain/spkrec-ecapa-voxceleb.
    attention_channels, embedding_dim : int
        Width of the attentive pooling, and D of the features.

    Attributes
    ----------
    feature_dim, num_layers : int
        D and 1.
    frame_seconds : float
        `segment_seconds`.
    """

    def __init__(
        self,
        source: str | None,
        segment_seconds: float = 0.4,
        mels: int = 80,
        channels: tuple[int, ...] = (1024, 1024, 1024, 1024, 3072),
        kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1),
        dilations: tuple[int, ...] = (1, 2, 3, 4, 1),
        attention_channels: int = 128,
        embedding_dim: int = 192,
    ):
        super().__init__()
        if not len(channels) == len(kernel_sizes) == len(dilations):
            raise ConfigError("speaker: channels, kernel_sizes and dilations must have the same number of entries")
        self.segment_seconds, self.segment = segment_seconds, round(segment_seconds * SAMPLE_RATE)
        # Reflection padding needs more frames than half the receptive field of the widest convolution.
        least = 160 * max(kernel // 2 * dilation for kernel, dilation in zip(kernel_sizes, dilations))
        if self.segment < least:
            raise ConfigError(f"speaker: segment_seconds is {segment_seconds:g}; it must be at least {least / 16000:g}")
        self.model = ECAPA_TDNN(
            mels,
            lin_neurons=embedding_dim,
            channels=list(channels),
            kernel_sizes=list(kernel_sizes),
            dilations=list(dilations),
            attention_channels=attention_channels,
            groups=[1] * len(channels),
        )
        if source is not None:
            path, state = read_checkpoint("speaker", str(source), "embedding_model.ckpt")
            try:
                self.model.load_state_dict(state)
            except RuntimeError as error:
                raise ConfigError(
                    f"speaker: {path} does not fit channels, kernel_sizes, dilations, attention_channels, "
                    f"embedding_dim and mels of the configuration: {error}"
                ) from error
        self.log_mel = Fbank(n_mels=mels)
        self.feature_dim, self.num_layers = embedding_dim, 1
        self.frame_seconds = self.segment / SAMPLE_RATE

    def num_frames(self, samples: Count) -> Count:
        """Segments of clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is shorter than a segment.
        """
        check_clip_length("speaker", samples, self.segment)
        return -(-samples // self.segment)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
        return {
            "type": "speaker",
            "weights": weights_digest(self.model),
            "mels": self.log_mel.compute_fbanks.n_mels,
            "segment_seconds": self.segment_seconds,
            "frame_seconds": self.frame_seconds,
            "audio": AUDIO_RULES,
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
            Embeddings [B, 1, T, D], zero after each clip's end, and valid frames [B] int64.

        Raises
        ------
        ValueError
            A clip is shorter than a segment.
        """
        lengths = lengths.to(waveforms.device)
        frames = self.num_frames(lengths)
        valid = valid_mask(frames, int(frames.max()))  # [B, T]
        starts = torch.arange(valid.shape[1], device=lengths.device) * self.segment
        starts = torch.minimum(starts, (lengths - self.segment)[:, None])  # [B, T]
        within = torch.arange(self.segment, device=lengths.device)
        clips, _ = valid.nonzero(as_tuple=True)
        segments = waveforms[clips[:, None], starts[valid][:, None] + within]  # [segments, samples]

        with torch.autocast(waveforms.device.type, enabled=False):  # power spectra need float32
            mel = self.log_mel(segments.float())  # [segments, M, mels]
            mel = mel - mel.mean(1, keepdim=True)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        embeddings = self.model(mel.to(self.model.fc.conv.weight.dtype))[:, 0]  # [segments, D]
        features = embeddings.new_zeros(*valid.shape, self.feature_dim)
        features[valid] = embeddings
        return features[:, None], frames


COMPONENT = SpeakerEncoder
