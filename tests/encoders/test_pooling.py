"""Pooling over time and mixing of layers: for each clip as if it were alone, and as options of an encoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.pooling import POOLINGS, mix_layers, mixing_weights
from audiolm_lite.encoders.whisper import WhisperEncoder

WINDOW = {"mean": lambda x: x.mean(1), "max": lambda x: x.amax(1), "stride": lambda x: x[:, 0]}


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 11), min_size=1, max_size=4),
    pool=st.integers(1, 5),
    pooling=st.sampled_from(sorted(POOLINGS)),
)
def test_windows_have_valid_frames_only(frames, pool, pooling):
    features = torch.randn(len(frames), 2, max(frames), 3) - 5
    pooled, counts = POOLINGS[pooling](features, torch.tensor(frames), pool)
    for clip, result, n, count in zip(features, pooled, frames, counts.tolist()):
        expected = torch.stack([WINDOW[pooling](window) for window in clip[:, :n].split(pool, dim=1)], dim=1)
        assert count == expected.shape[1]
        torch.testing.assert_close(result[:, :count], expected)
        assert not result[:, count:].any()


def test_layers_are_summed_with_their_weights():
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(mix_layers(features, mixing_weights("mean", 3)), features.mean(1, keepdim=True))
    expected = features[:, :1] - 2 * features[:, 2:]
    torch.testing.assert_close(mix_layers(features, mixing_weights([1, 0, -2], 3)), expected)
    assert mixing_weights(None, 3) is None
    for wrong in ([1.0, 2.0], "max"):
        with pytest.raises(ConfigError, match="layer_mix is .*3 weights"):
            mixing_weights(wrong, 3)


def test_whisper_pools_and_mixes(sources):
    source, waves, lengths = str(sources / "whisper"), 0.1 * torch.randn(2, 8000), torch.tensor([8000, 4100])
    every, frames = WhisperEncoder(source)(waves, lengths)
    encoder = WhisperEncoder(source, pool=3, pooling="max", layer_mix=[0.25, 0.75])
    features, counts = encoder(waves, lengths)
    assert encoder.num_layers == 1 and counts.tolist() == [encoder.num_frames(n) for n in (8000, 4100)]
    pooled, _ = POOLINGS["max"](every, frames, 3)
    torch.testing.assert_close(features, mix_layers(pooled, [0.25, 0.75]))
    assert {"pooling": "max", "layer_mix": [0.25, 0.75]}.items() <= encoder.identity().items()
    with pytest.raises(ConfigError, match="pooling is 'median', it must be one of mean, max, stride"):
        WhisperEncoder(source, pooling="median")
