"""BEATs against SpeechBrain's independent implementation, and complete loading of published checkpoints."""

import numpy as np
import pytest
import torch
from speechbrain.lobes.models import beats as published

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.beats import BEATsEncoder
from tests.tiny import draw_weights

CONFIG = {
    "embed_dim": 24,
    "encoder_layers": 3,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 20,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "encoder_layerdrop": 0.05,  # as in published files; concerns training only
    "predictor_class": 5,
}


@pytest.fixture(params=[False, True], ids=["pretrained", "finetuned"])
def checkpoint(request, monkeypatch):
    """SpeechBrain's model with random weights, and a checkpoint of it in the published format."""
    config = {**CONFIG, "finetuned_model": request.param}
    made = published.BEATsConfig(config)
    monkeypatch.setattr(published, "BEATsConfig", lambda _: made)
    model = published.BEATs(output_all_hiddens=True)
    draw_weights(model, 0.3)
    state = {}
    for name, tensor in model.state_dict().items():
        # Published files are older than this spelling of weight normalisation.
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    assert ("predictor.weight" in state) == request.param
    assert sum("relative_attention_bias" in name for name in state) == 3
    labels = {"label_dict": {i: f"/m/{i}" for i in range(5)}} if request.param else {}
    return model, {"cfg": config, "model": state, **labels}


@pytest.mark.parametrize("samples", [2800, 16000, 40123])
def test_a_clip_alone_equals_the_published_model(tmp_path, checkpoint, samples):
    model, content = checkpoint
    torch.save(content, tmp_path / "BEATs_tiny.pt")
    wave = 0.2 * torch.randn(1, samples)
    with torch.no_grad():
        expected = model.extract_features(wave, torch.ones(1))[0]  # [1 + L, T, B, D]
        features, frames = BEATsEncoder(str(tmp_path))(wave, torch.tensor([samples]))
    assert frames.tolist() == [expected.shape[1]] == [(1 + (samples - 400) // 160) // 16 * 8]
    torch.testing.assert_close(features[0], expected[1:, :, 0], rtol=1e-4, atol=1e-4)


def test_every_tensor_is_accounted_for(tmp_path, checkpoint):
    _, content = checkpoint
    file = tmp_path / "BEATs_tiny.pt"
    state = content["model"]

    def load(**changes):
        torch.save({**content, "model": {k: v for k, v in {**state, **changes}.items() if v is not None}}, file)
        return BEATsEncoder(str(file))

    encoder = load()
    count = sum(p.numel() for p in encoder.parameters())
    assert count == sum(
        tensor.numel()
        for name, tensor in state.items()
        if not name.startswith("predictor.") and not ("relative_attention_bias" in name and "layers.0" not in name)
    )
    for changes, message in (
        (
            {"encoder.layers.1.fc1.bias": None},
            r"1 tensors are missing \['encoder.layers.1.fc1.bias'\], 0 are unexpected",
        ),
        ({"quantize.embedding": torch.zeros(2)}, r"1 are unexpected \['quantize.embedding'\]"),
        ({"encoder.layers.0.self_attn.relative_attention_bias.weight": None}, "position_bias.weight"),
        (
            {"encoder.layers.2.self_attn.relative_attention_bias.weight": torch.zeros(16, 4)},
            "position biases differ between its blocks",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load(**changes)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"cfg": CONFIG, "model": {}, "extra": np.random.RandomState}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"x.pt is not a valid checkpoint of tensors"):
        BEATsEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("entries", "message"), [({"deep_norm": False}, "deep_norm is False"), ({"activation_fn": "relu"}, "'relu'")]
)
def test_unpublished_variants_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        build("encoders", {"type": "beats", "source": {**CONFIG, **entries}})


def test_ambiguous_or_foreign_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must contain one file \*.pt, it contains none"):
        BEATsEncoder(str(tmp_path))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="a.pt is not a BEATs checkpoint"):
        BEATsEncoder(str(tmp_path))
    torch.save({}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="it contains a.pt, b.pt; name the file"):
        BEATsEncoder(str(tmp_path))
