"""wav2vec 2.0, HuBERT and WavLM against transformers' own forward; loading and wrong arguments."""

import numpy as np
import pytest
import torch
import transformers

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.ssl import SSLEncoder
from tests.tiny import save_ssl

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 4, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 16,
    "max_bucket_distance": 40,
}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = [(kind, style) for kind in ("wav2vec2", "hubert", "wavlm") for style in ("base", "large")]


def save_model(folder, kind, style, normalize=True, **entries):
    """Write a random tiny model's folder; layer drop and SpecAugment are on, as in published configurations."""
    sizes = SIZES if kind == "wavlm" else {k: v for k, v in SIZES.items() if "bucket" not in k}
    style = {"base": BASE, "large": LARGE}[style]
    return save_ssl(folder, kind, normalize, seed=0, std=0.2, **sizes, **style, layerdrop=0.5, **entries).eval()


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_a_clip_alone_equals_transformers(tmp_path, kind, style):
    model = save_model(tmp_path, kind, style)
    wave = 0.1 * torch.randn(9000) + 0.3
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model(inputs, output_hidden_states=True)
        features, frames = SSLEncoder(tmp_path)(wave[None], torch.tensor([9000]))
    expected = torch.stack(expected.hidden_states[1:-1] + (expected.last_hidden_state,), dim=1)
    assert features.shape == expected.shape and frames.tolist() == [expected.shape[2]]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_batches_equal_transformers_where_it_masks(tmp_path, kind):
    """Models with layer norm take an attention mask in transformers; its masks and these must be equal."""
    model = save_model(tmp_path, kind, "large")
    waves = [torch.randn(n).numpy() for n in (8000, 3000, 5555)]
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    inputs = extractor(waves, sampling_rate=16000, return_tensors="pt", padding=True)
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        features, frames = SSLEncoder(tmp_path, layers=[-1])(padded, lengths)
    for clip, reference, count in zip(features[:, 0], expected, frames):
        torch.testing.assert_close(clip[:count], reference[:count], rtol=1e-4, atol=1e-4)


def test_the_waveform_is_normalized_if_the_model_requires_it(tmp_path):
    save_model(tmp_path / "yes", "hubert", "base")
    save_model(tmp_path / "no", "hubert", "base", normalize=False)
    quiet, lengths = 0.01 * torch.randn(2, 4000) + 0.02, torch.tensor([4000, 2500])
    normalizing, plain = SSLEncoder(tmp_path / "yes"), SSLEncoder(tmp_path / "no")
    prepared = normalizing._prepare(quiet, lengths).numpy()
    np.testing.assert_allclose(
        [p[:n].mean() for p, n in zip(prepared, lengths)] + [p[:n].std() for p, n in zip(prepared, lengths)],
        [0, 0, 1, 1],
        atol=1e-3,
    )
    assert not prepared[1, 2500:].any()
    assert torch.equal(plain._prepare(quiet, lengths)[0], quiet[0])
    assert normalizing.identity() != plain.identity()


def test_training_drops_and_masks_nothing(tmp_path):
    save_model(tmp_path, "wavlm", "large", hidden_dropout=0.3, mask_time_prob=0.5, mask_time_length=2)
    encoder = SSLEncoder(tmp_path)
    clip = torch.randn(1, 6000), torch.tensor([6000])
    torch.testing.assert_close(encoder.train()(*clip)[0], encoder.eval()(*clip)[0])


def test_selected_layers_equal_those_of_all(tmp_path):
    save_model(tmp_path, "wavlm", "large")
    clip = torch.randn(1, 6000), torch.tensor([6000])
    everything, _ = SSLEncoder(tmp_path)(*clip)
    torch.testing.assert_close(SSLEncoder(tmp_path, layers=[-1, 0])(*clip)[0], everything[:, [2, 0]])
    first = SSLEncoder(tmp_path, layers=[0])
    torch.testing.assert_close(first(*clip)[0], everything[:, :1])
    assert len(first.model.encoder.layers) == 1


def test_a_pickled_state_dictionary_loads_and_code_in_it_does_not(tmp_path):
    """Several of these models are published without safetensors."""
    model = save_model(tmp_path, "hubert", "base")
    expected = SSLEncoder(tmp_path).identity()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert SSLEncoder(tmp_path).identity() == expected
    torch.save({**model.state_dict(), "payload": np.random.RandomState}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|unable to load weights"):
        SSLEncoder(tmp_path)


def test_missing_weights_are_refused(tmp_path):
    model = save_model(tmp_path, "hubert", "base")
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.attention.k" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match="lacks 2 tensors.*layers.1.attention.k_proj"):
        SSLEncoder(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": {"model_type": "bert"}}, "'bert', it must be one of wav2vec2, hubert, wavlm"),
        ({"source": {"model_type": "wav2vec2", "adapter_attn_dim": 16}}, "adapter_attn_dim"),
        ({"layers": [3]}, "blocks 0 to 2"),
        ({"pool": 0}, "at least 1"),
        ({"quantization": "3bit"}, "None, 8bit, 4bit"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    source = {"model_type": "wavlm", **SIZES}
    with pytest.raises(ConfigError, match=message):
        build("encoders", {"type": "ssl", "source": source, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the message on machines without a GPU")
@pytest.mark.parametrize("kind", ["ssl", "whisper"])
def test_quantization_without_a_gpu_is_refused(kind):
    with pytest.raises(ConfigError, match=f"encoder {kind}: .*NVIDIA GPU"):
        build("encoders", {"type": kind, "source": "anything", "quantization": "8bit"})
