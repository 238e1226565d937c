"""Log-mel features: equal to WhisperFeatureExtractor, and each clip independent of its batch."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build


def collate(waves):
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([len(w) for w in waves])


def wave(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def test_full_padding_equals_transformers_with_128_mels():
    waves = [wave(20000), wave(160, 1)]
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    expected = extractor([w.numpy() for w in waves], sampling_rate=16000, return_tensors="pt").input_features
    features, _ = build("encoders", {"type": "logmel"})(*collate(waves))
    assert features.shape == (2, 1, 3000, 128)
    torch.testing.assert_close(features[:, 0].mT, expected, rtol=0, atol=5e-5)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(201, 9000), min_size=1, max_size=4), padding=st.sampled_from(["exact", "full"]))
def test_a_clip_does_not_depend_on_its_batch(lengths, padding):
    encoder = build("encoders", {"type": "logmel", "mels": 20, "padding": padding, "window_seconds": 1.0})
    waves = [wave(n, seed) for seed, n in enumerate(lengths)]
    features, frames = encoder(*collate(waves))
    assert (
        frames.tolist()
        == [encoder.num_frames(n) for n in lengths]
        == encoder.num_frames(torch.tensor(lengths)).tolist()
    )
    for clip, result, count in zip(waves, features, frames.tolist()):
        torch.testing.assert_close(encoder(*collate([clip]))[0][0], result[:, :count], rtol=0, atol=1e-5)
        assert not result[:, count:].any()


def test_unfit_clips_and_settings_are_refused():
    encoder = build("encoders", {"type": "logmel", "padding": "exact", "window_seconds": 1})
    with pytest.raises(ValueError, match="longer than the 1 s that the logmel encoder accepts; raise window_seconds"):
        encoder.num_frames(16001)
    with pytest.raises(ValueError, match="shorter than the 201"):
        encoder(*collate([wave(200)]))
    for wrong in ({"padding": "window"}, {"window_seconds": 0}):
        with pytest.raises(ConfigError, match="logmel"):
            build("encoders", {"type": "logmel", **wrong})
    assert json.loads(json.dumps(encoder.identity())) == encoder.identity()
