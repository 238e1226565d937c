"""Properties of every encoder: shapes, frame counts, independence of a clip from its batch, gradients."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build, component_types
from audiolm_lite.encoders.checkpoints import cast_weights
from tests import tiny

WHISPER = {"type": "whisper", "source": tiny.WHISPER}
CONVOLUTIONS = {"conv_dim": [8, 8], "conv_kernel": [10, 8], "conv_stride": [20, 16], "num_feat_extract_layers": 2}
SSL = {**tiny.SSL, **CONVOLUTIONS, "intermediate_size": 24, "num_conv_pos_embeddings": 8}
GROUP = {**SSL, "feat_extract_norm": "group", "do_stable_layer_norm": False}
WAVLM = {"type": "ssl", "source": {"model_type": "wavlm", "num_buckets": 16, "max_bucket_distance": 20, **GROUP}}
BEATS = {"embed_dim": 16, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 32, "conv_pos": 16}
BEATS = {"type": "beats", "source": {**tiny.BEATS, **BEATS}}
SPEAKER = {"type": "speaker", "source": None, **tiny.SPEAKER, "channels": [16, 16, 16, 32]}
CONFIGS = {
    "whisper": WHISPER,
    "wav2vec2_group_norm": {"type": "ssl", "source": {"model_type": "wav2vec2", **GROUP}},
    "hubert_layer_norm": {
        "type": "ssl",
        "source": {"model_type": "hubert", **SSL},
        "pool": 3,
        "pooling": "max",
    },
    "wavlm": WAVLM,
    "beats": {**BEATS, "pool": 3, "layer_mix": [0.3, 0.7]},
    "speaker": SPEAKER,
    "fused_nearest": {"type": "fused", "encoders": {"a": WHISPER, "b": BEATS, "c": SPEAKER}},
    "fused_linear": {"type": "fused", "encoders": {"a": WAVLM, "c": SPEAKER}, "align": "linear"},
    "fused_pad": {"type": "fused", "encoders": {"a": WHISPER, "b": BEATS}, "align": "pad"},
}


@pytest.fixture(scope="module", params=CONFIGS)
def encoder(request):
    torch.manual_seed(0)
    encoder = build("encoders", CONFIGS[request.param]).eval()
    for name, parameter in encoder.named_parameters():  # default initializations are close to zero
        if parameter.requires_grad and ("norm" not in name or name.startswith("norms.")):
            parameter.data.normal_(0, 0.15)
    return encoder


def test_every_encoder_is_tested():
    has_no_weights = {"logmel"}
    assert {config["type"] for config in CONFIGS.values()} == set(component_types("encoders")) - has_no_weights


def clips(lengths):
    """Noise at a lower level in each clip, so that statistics over the complete batch would be noticed."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(n, generator=generator) * 10.0 ** -(i % 3) + 0.05 for i, n in enumerate(lengths)]


def collate(waves):
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(6400, 32000), min_size=2, max_size=4))
def test_a_clip_does_not_depend_on_its_batch(encoder, lengths):
    waves = clips(lengths)
    batch, samples = collate(waves)
    after = torch.arange(batch.shape[1]) >= samples[:, None]
    with torch.no_grad():
        features, frames = encoder(batch.masked_fill(after, 7.0), samples)
        assert features.shape == (len(waves), encoder.num_layers, int(frames.max()), encoder.feature_dim)
        assert frames.dtype == torch.int64
        assert frames.tolist() == encoder.num_frames(samples).tolist() == [encoder.num_frames(n) for n in lengths]
        for wave, together, count in zip(waves, features, frames):
            alone, _ = encoder(*collate([wave]))
            assert (together[:, :count] - alone[0]).abs().max() < 1e-4 * alone.abs().max()
            assert not together[:, count:].any()


def test_frame_seconds_is_the_duration_of_a_frame(encoder):
    assert encoder.num_frames(32000) * encoder.frame_seconds == pytest.approx(2.0, abs=0.4)


def test_too_short_clips_are_refused(encoder):
    for samples in (50, torch.tensor([32000, 50])):
        with pytest.raises(ValueError, match="clip of 50 samples is shorter than the .* drop it from the manifest"):
            encoder.num_frames(samples)
    with pytest.raises(ValueError, match="clip of 50 samples"):
        encoder(torch.zeros(2, 32000), torch.tensor([32000, 50]))


def test_every_parameter_gets_a_gradient(encoder):
    encoder.zero_grad()
    features, _ = encoder(*collate(clips([16000, 9000])))
    (features * torch.randn(features.shape)).sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and not name.endswith("k_proj.bias"):  # adds the same to all scores of a query
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_identity_is_json_and_changes_with_the_weights(encoder):
    identity = encoder.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["frame_seconds"] == encoder.frame_seconds
    parameter = next(p for p in encoder.parameters() if p.requires_grad)
    parameter.data.flatten()[0] += 1
    assert encoder.identity() != identity
    parameter.data.flatten()[0] -= 1


@pytest.mark.parametrize("name", ["whisper", "wav2vec2_group_norm", "hubert_layer_norm", "wavlm", "beats"])
def test_weights_of_16_bits_give_nearly_the_same_features(name):
    waves, lengths = collate(clips([9000, 16000]))
    results = {}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        encoder = build("encoders", {**CONFIGS[name], "dtype": dtype}).eval()
        assert {parameter.dtype for parameter in encoder.parameters()} == {getattr(torch, dtype)}
        assert encoder.identity()["dtype"] == dtype
        with torch.no_grad():
            results[dtype] = encoder(waves, lengths)[0]
        assert results[dtype].dtype == torch.float32
    error = (results["bfloat16"] - results["float32"]).square().mean().sqrt() / results["float32"].std()
    assert 0 < error < 0.03


def test_wrong_dtypes_are_refused():
    with pytest.raises(ConfigError, match="whisper: dtype is 'half', it must be one of float32, bfloat16, float16"):
        build("encoders", {**WHISPER, "dtype": "half"})
    with pytest.raises(ConfigError, match="dtype bfloat16 and quantization 4bit exclude each other"):
        cast_weights("whisper", torch.nn.Linear(1, 1), "bfloat16", "4bit")
