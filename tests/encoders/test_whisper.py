"""Whisper encoder against transformers and openai-whisper, and the independence of a clip from its batch."""

import dataclasses
import json

import pytest
import torch
import transformers
import whisper as openai_whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.whisper import WhisperEncoder, _attend
from tests.tiny import draw_weights, save_whisper

SECONDS = 2  # the tiny model's "30 s"


def save_model(folder, **arguments):
    """Write the folder of a random tiny Whisper with positions for SECONDS of audio; its attention is not uniform."""
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    sizes |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 64}
    model = save_whisper(folder, seed=0, encoder_std=0.15, **{"seconds": SECONDS, **sizes, **arguments})
    return model.eval()


@pytest.fixture(scope="module", params=[160, 320], ids=["hop160", "hop320"])
def reference(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    model = save_model(folder, hop=request.param)
    return folder, model, transformers.WhisperFeatureExtractor.from_pretrained(folder)


def wave(samples, seed=0):
    """A loud chirp with noise: [samples]."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples) / 16000
    return 0.3 * torch.sin(2 * torch.pi * (200 + 300 * seed + 900 * t) * t) + 0.05 * torch.randn(
        samples, generator=generator
    )


def collate(waves):
    lengths = torch.tensor([len(w) for w in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


def library_states(model, extractor, waves):
    """Hidden states of transformers' own forward: [B, L, T, D] without the convolutions' output."""
    inputs = extractor([w.numpy() for w in waves], sampling_rate=16000, return_tensors="pt", padding="max_length")
    with torch.no_grad():
        out = model.encoder(inputs.input_features, output_hidden_states=True)
    return torch.stack(out.hidden_states[1:-1] + (out.last_hidden_state,), dim=1)


def test_full_padding_equals_transformers(reference):
    folder, model, extractor = reference
    waves = [wave(32000), wave(9000, 1), wave(160, 2)]
    features, frames = WhisperEncoder(folder, padding="full").eval()(*collate(waves))
    expected = library_states(model, extractor, waves)
    assert features.shape == expected.shape and frames.tolist() == [expected.shape[2]] * 3
    torch.testing.assert_close(features, expected, rtol=0, atol=5e-5)


def test_exact_padding_equals_transformers_where_clips_fill_the_window(reference):
    folder, model, extractor = reference
    features, _ = WhisperEncoder(folder).eval()(*collate([wave(32000)]))
    torch.testing.assert_close(features, library_states(model, extractor, [wave(32000)]), rtol=0, atol=5e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder)
    return folder


@pytest.mark.parametrize("pool", [1, 3])
def test_trimmed_padding_gives_the_first_frames_of_full_padding(reference, pool):
    folder, _, extractor = reference
    clips, lengths = collate([wave(32000), wave(9001, 1), wave(160, 2)])
    full, _ = WhisperEncoder(folder, padding="full")(clips, lengths)
    features, frames = WhisperEncoder(folder, padding="trimmed", pool=pool)(clips, lengths)
    own = -(-lengths // (2 * extractor.hop_length))
    assert frames.tolist() == (-(-own // pool)).tolist()
    for clip, count, everything, end in zip(features, frames, full, own):
        groups = everything[:, : int(end)].split(pool, dim=1)  # frames after the clip's end are not averaged
        expected = torch.stack([group.mean(dim=1) for group in groups], dim=1)
        torch.testing.assert_close(clip[:, :count], expected, rtol=0, atol=1e-6)
        assert not clip[:, count:].any()


@pytest.mark.parametrize("padding", ["exact", "window", "full", "trimmed"])
def test_shapes(tiny, padding):
    encoder = WhisperEncoder(tiny, padding=padding, window_seconds=1.5, pool=4)
    lengths = [1000, 24000, 7321]
    features, frames = encoder(*collate([wave(n) for n in lengths]))
    assert features.shape == (3, encoder.num_layers, max(frames), encoder.feature_dim) == (3, 3, max(frames), 32)
    expected = {"exact": [1, 19, 6], "window": [19, 19, 19], "full": [25, 25, 25], "trimmed": [1, 19, 6]}
    expected = expected[padding]
    assert frames.tolist() == expected and frames.dtype == torch.int64
    assert [encoder.num_frames(n) for n in lengths] == encoder.num_frames(torch.tensor(lengths)).tolist() == expected
    assert encoder.frame_seconds == 0.08
    assert encoder.max_seconds == {"exact": 2.0, "window": 1.5, "full": 2.0, "trimmed": 2.0}[padding]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(201, 32000), min_size=2, max_size=5),
    padding=st.sampled_from(["exact", "window", "full", "trimmed"]),
    pool=st.sampled_from([1, 3]),
)
def test_a_clip_does_not_depend_on_its_batch(tiny, lengths, padding, pool):
    encoder = WhisperEncoder(tiny, padding=padding, window_seconds=SECONDS, pool=pool).eval()
    # Levels differ by 40 dB, so that a maximum over the complete batch would be noticed.
    waves = [wave(n, seed) * 10.0 ** -(seed % 3) for seed, n in enumerate(lengths)]
    batch, samples = collate(waves)
    garbage = torch.arange(batch.shape[1]) >= samples[:, None]
    with torch.no_grad():
        features, frames = encoder(batch.masked_fill(garbage, 7.0), samples)
        for clip, together, count in zip(waves, features, frames):
            alone, [expected] = encoder(*collate([clip]))
            assert count == expected == encoder.num_frames(len(clip))
            difference = (together[:, :count] - alone[0]).abs().max() / alone.abs().max()
            assert difference < 1e-4
            assert not together[:, count:].any()


def test_selected_layers_equal_those_of_all(tiny):
    clips = collate([wave(16000), wave(5000)])
    everything, _ = WhisperEncoder(tiny)(*clips)
    selected = WhisperEncoder(tiny, layers=[-1, 0])
    torch.testing.assert_close(selected(*clips)[0], everything[:, [2, 0]])
    assert selected.num_layers == 2
    first = WhisperEncoder(tiny, layers=[0])
    torch.testing.assert_close(first(*clips)[0], everything[:, :1])
    assert len(first.model.layers) == 1


def test_every_block_gets_gradients(tiny):
    encoder = WhisperEncoder(tiny).train()
    features, _ = encoder(*collate([wave(8000), wave(3000)]))
    features.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_attention_in_bfloat16_on_a_cpu_equals_that_of_torch():
    q, k, v = torch.randn(3, 2, 4, 50, 8, generator=torch.Generator().manual_seed(1))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    rounded = _attend(*(part.bfloat16() for part in (q, k, v)), None)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02)
    assert torch.equal(_attend(q, k, v, None), exact)


def test_bfloat16_weights_keep_the_spectrogram_in_float32(tiny):
    encoder = WhisperEncoder(tiny, layers=[0]).eval()
    expected, _ = encoder(*collate([wave(16000)]))
    features, _ = encoder.bfloat16()(*collate([wave(16000)]))
    torch.testing.assert_close(features, expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "samples", "message"),
    [
        ({}, 32001, "split it into segments"),
        ({"padding": "window", "window_seconds": 1.0}, 16001, "raise window_seconds"),
        ({}, 200, "shorter than the 201"),
        ({"padding": "full"}, 0, "shorter than the 1 "),
        ({"padding": "trimmed"}, 0, "shorter than the 1 "),
        ({"padding": "trimmed"}, 32001, "split it into segments"),
    ],
)
def test_impossible_lengths_are_refused(tiny, arguments, samples, message):
    encoder = WhisperEncoder(tiny, **arguments)
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(1, max(samples, 1)), torch.tensor([samples]))
    with pytest.raises(ValueError, match=message):
        encoder.num_frames(samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "valid"}, "'exact', 'window', 'full'"),
        ({"layers": [3]}, "blocks 0 to 2"),
        ({"layers": []}, "blocks 0 to 2"),
        ({"pool": 0}, "at least 1"),
        ({"padding": "window", "window_seconds": 2.1}, "accepts up to 2 s"),
    ],
)
def test_impossible_arguments_are_refused(tiny, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build("encoders", {"type": "whisper", "source": str(tiny), **arguments})


def test_unknown_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="'largest' is not a model folder"):
        WhisperEncoder("largest")


def test_checkpoint_without_encoder_weights_is_refused(tmp_path):
    model = save_model(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match="lacks 2 encoder tensors.*layers.1.fc1"):
        WhisperEncoder(tmp_path)


def test_identity_contains_everything_that_changes_features(tiny):
    base = WhisperEncoder(tiny).identity()
    assert json.loads(json.dumps(base)) == base == WhisperEncoder(tiny).identity()
    for changed in ({"pool": 2}, {"layers": [0, 2]}, {"padding": "full"}, {"padding": "window", "window_seconds": 1.0}):
        assert WhisperEncoder(tiny, **changed).identity() != base
    tuned = WhisperEncoder(tiny)
    tuned.model.conv1.bias.data[0] += 1e-3
    assert {k for k, v in tuned.identity().items() if v != base[k]} == {"weights"}


def test_openai_checkpoint_equals_the_published_forward(tmp_path):
    """A .pt file of openai-whisper, loaded into transformers' modules, gives the features of openai-whisper."""
    torch.manual_seed(1)
    dims = openai_whisper.model.ModelDimensions(80, 100, 32, 4, 2, 64, 8, 32, 4, 1)
    published = openai_whisper.model.Whisper(dims).eval()
    draw_weights(published.encoder, 0.15)
    file = tmp_path / "tiny.pt"
    torch.save({"dims": dataclasses.asdict(dims), "model_state_dict": published.state_dict()}, file)

    clip = wave(20000)
    features, frames = WhisperEncoder(str(file), padding="full").eval()(*collate([clip]))
    mel = openai_whisper.audio.log_mel_spectrogram(openai_whisper.pad_or_trim(clip, 32000))
    blocks = []
    for block in published.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    with torch.no_grad():
        last = published.encoder(mel[None])
    expected = torch.stack([blocks[0], last], dim=1)
    assert frames.tolist() == [100]
    torch.testing.assert_close(features, expected, rtol=0, atol=5e-5)


OPENAI_NAMES = {
    "layers.": "blocks.",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "layer_norm": "ln_post",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "embed_positions.weight": "positional_embedding",
}


@pytest.mark.parametrize("mels", [80, 128])
def test_both_sources_of_one_model_give_the_same_features(tmp_path, mels):
    """A folder in transformers' format, and a file of openai-whisper with the same weights."""
    model = save_model(tmp_path / "folder", mels=mels, seconds=30, encoder_ffn_dim=128, encoder_layers=2)
    dims = openai_whisper.model.ModelDimensions(mels, 1500, 32, 4, 2, 64, 8, 32, 4, 1)
    state = openai_whisper.model.Whisper(dims).state_dict()
    for name, tensor in model.encoder.state_dict().items():
        for theirs, published in OPENAI_NAMES.items():
            name = name.replace(theirs, published)
        assert f"encoder.{name}" in state
        state[f"encoder.{name}"] = tensor
    torch.save({"dims": dataclasses.asdict(dims), "model_state_dict": state}, tmp_path / "tiny.pt")

    one, other = WhisperEncoder(tmp_path / "tiny.pt"), WhisperEncoder(tmp_path / "folder")
    assert one.identity() == other.identity()
    clips = collate([wave(20000), wave(7000, 1)])
    for together, alone in zip(one(*clips), other(*clips)):
        torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_a_configuration_gives_random_weights():
    encoder = WhisperEncoder(
        {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "max_source_positions": 100}
    )
    assert (encoder.feature_dim, encoder.num_layers, encoder.max_seconds) == (32, 3, 2.0)
