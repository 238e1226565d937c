"""Whisper's log-mel spectrogram, and the features that LTU-AS extracts with its encoder."""

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from audiolm_lite.config.registry import build
from audiolm_lite.encoders import whisper
from audiolm_lite.encoders.logmel import log_mel
from audiolm_lite.encoders.pooling import mean_pool
from audiolm_lite.encoders.whisper import WhisperEncoder
from tests.parity.reference import LOG_MEL, STATES, Reference, assert_near, below
from tests.tiny import tiny_whisper

_WINDOW = 10.0  # seconds of audio that LTU-AS encodes


def waves(reference: Reference) -> tuple[Tensor, Tensor]:
    """Waveforms [A, S] and lengths [A]."""
    clips = [reference.inputs[name].float() / 32768 for name in sorted(reference.inputs)]
    return nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips])


def check_log_mel(reference: Reference) -> None:
    config, outputs = reference.config["feature_extractor"], reference.outputs
    block = {"type": "logmel", "mels": config["feature_size"], "window_seconds": config["chunk_length"]}
    encoder = build("encoders", block)
    assert (encoder.n_fft, encoder.hop) == (config["n_fft"], config["hop_length"])
    mels = encoder(*waves(reference))[0][:, 0].mT
    if "log_mel" in outputs:  # of transformers; the subset in data/ has the spectrogram of openai-whisper only
        assert_near(mels, outputs["log_mel"], LOG_MEL)
    for name, mel in zip(sorted(reference.inputs), mels):
        letter = name.removeprefix("wave_").removesuffix("_int16")
        head, tail = (outputs[f"openai_log_mel_{letter}_{part}"] for part in ("head", "tail_value"))
        assert_near(mel[:, : head.shape[1]], head, LOG_MEL)
        assert_near(mel[:, head.shape[1] :], tail.expand_as(mel[:, head.shape[1] :]), LOG_MEL)


def check_pooled(reference: Reference) -> None:
    outputs, pool = reference.outputs, reference.config["pooling"]["kernel"]
    clips = waves(reference)
    with TemporaryDirectory() as folder:
        _save(reference, Path(folder))
        encoder = WhisperEncoder(folder, padding="full").eval()
        stem = []  # output of the convolutions plus positions, which is not a layer of this encoder
        encoder.model.layers[0].self_attn_layer_norm.register_forward_pre_hook(lambda norm, args: stem.append(args[0]))
        features, frames = encoder(*clips)
        assert_near(features[:, -1], outputs["last_hidden_state"], STATES)
        pooled = WhisperEncoder(folder, padding="full", pool=pool).eval()(*clips)[0]
        assert_near(pooled, outputs["hidden_pooled20"][:, 1:], STATES)
        assert_near(mean_pool(stem[0][:, None], frames, pool)[0], outputs["hidden_pooled20"][:, :1], STATES)

        window = WhisperEncoder(folder, padding="window", window_seconds=_WINDOW, pool=pool).eval()
    # The SpeechBrain recipe pads the waveform, like padding "window".
    assert_near(window(*clips)[0], outputs["ltu_as_speechbrain_10s_pooled20"], STATES)
    # The original pads the spectrogram with a value that is not silence, and does not apply the last norm. The encoder
    # has no option for that, so the test changes both.
    window.model.layer_norm = nn.Identity()
    with patch.object(whisper, "log_mel", lambda *args: _padded_log_mel(window, *clips)):
        original = window(*clips)[0]
    assert_near(original, outputs["ltu_as_original_10s_pooled20"], STATES)


def _padded_log_mel(encoder: WhisperEncoder, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Spectrograms [A, mels, M] of the clips without padding, then padded with zeros, and a mask that is all True."""
    size = encoder.max_samples // encoder.hop
    mels = []
    for clip, length in zip(waveforms, lengths.tolist()):
        mel, _ = log_mel(clip[None, :length], torch.tensor([length]), encoder.mel_filters, encoder.n_fft, encoder.hop)
        mel = mel[..., : min(length // encoder.hop, size)]
        mels.append(F.pad(mel, (0, size - mel.shape[-1])))
    return torch.cat(mels), torch.ones(len(mels), size, dtype=torch.bool)


def _save(reference: Reference, folder: Path) -> None:
    sizes, extractor = reference.config["encoder"], reference.config["feature_extractor"]
    names = "d_model encoder_layers encoder_attention_heads encoder_ffn_dim num_mel_bins max_source_positions"
    model = tiny_whisper(**{name: sizes[name] for name in names.split()}, decoder_attention_heads=1)
    model.encoder.load_state_dict(below(reference.state, "model.encoder."))
    model.save_pretrained(folder)
    names = ("feature_size", "hop_length", "chunk_length", "n_fft")
    transformers.WhisperFeatureExtractor(**{name: extractor[name] for name in names}).save_pretrained(folder)
