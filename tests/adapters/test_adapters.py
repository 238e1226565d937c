"""Adapters: shapes, counts, independence of padding and batch, and messages about wrong arguments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.config.registry import build, component_types

DIM, LLM_DIM = 16, 12
BLOCKS = {"dim": 24, "heads": 3, "hidden_dim": 40}
CASES = {
    "tltr": {"type": "tltr", "time_heads": 2, "layer_heads": 4},
    "linear": {"type": "linear", "stride": 3, "hidden_dim": 20},
    "linear conv": {"type": "linear", "stride": 3, "hidden_dim": 20, "conv": True},
    "identity": {"type": "identity"},
    "mlp_pooling concat": {"type": "mlp_pooling", "stride": 4, "bias": False},
    "mlp_pooling average": {"type": "mlp_pooling", "stride": 3, "pooling": "average", "hidden_dim": 9},
    "qformer": {"type": "qformer", "queries": 5, "blocks": 3, **BLOCKS},
    "window_qformer": {"type": "window_qformer", "window": 4, "queries": 2, "streams": [10, 6], **BLOCKS},
    "window_qformer published": {"type": "window_qformer", "window": 4, "published_behaviour": True, **BLOCKS},
    "conformer": {"type": "conformer", "dim": 12, "heads": 3, "kernel": 5},
    "stacked_transformer": {"type": "stacked_transformer", "stride": 2, "dim": 12, "heads": 3, "kernel": 3},
    "conformer dw_striding": {"type": "conformer", "dim": 12, "heads": 3, "factor": 8, "channels": 4},
    "conformer striding": {
        "type": "conformer", "dim": 12, "heads": 3, "factor": 4, "channels": 4, "subsampling": "striding"
    },
}  # fmt: skip


def make(name, seed=0):
    """The adapter of a case with changed parameters, and the number of encoder layers that it reads."""
    torch.manual_seed(seed)
    layers = 3 if name in ("tltr", "stacked_transformer") else 1
    adapter = build("adapters", CASES[name], feature_dim=DIM, num_layers=layers, llm_dim=LLM_DIM).eval()
    for tensor in [*adapter.parameters(), *(b for b in adapter.buffers() if b.is_floating_point())]:
        tensor.data += 0.3 * torch.rand(tensor.shape)
    return adapter, layers


def test_every_adapter_is_tested():
    assert {case["type"] for case in CASES.values()} == set(component_types("adapters"))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(4, 20), min_size=1, max_size=4), extra=st.integers(0, 9))
def test_tokens_do_not_depend_on_padding_or_batch(name, lengths, extra):
    adapter, layers = make(name)
    generator = torch.Generator().manual_seed(sum(lengths))
    clips = [torch.randn(layers, length, DIM, generator=generator) for length in lengths]
    # The padding is noise instead of zeros: it must not change the result.
    padded = 3 * torch.randn(len(clips), layers, max(lengths) + extra, DIM, generator=generator)
    for row, clip in zip(padded, clips):
        row[:, : clip.shape[1]] = clip
    frames = torch.tensor(lengths)
    with torch.no_grad():
        together, counts = adapter(padded, frames)
        assert counts.tolist() == adapter.num_tokens(frames).tolist() == [adapter.num_tokens(n) for n in lengths]
        assert together.shape[::2] == (len(clips), LLM_DIM) and together.shape[1] >= counts.max()
        for clip, row, count in zip(clips, together, counts.tolist()):
            alone, number = adapter(clip[None], torch.tensor([clip.shape[1]]))
            assert alone.shape[1] == number.item() == count
            torch.testing.assert_close(alone[0], row[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_valid_frame_is_used_and_every_parameter_gets_a_gradient(name):
    adapter, layers = make(name)
    length = 11
    features = torch.randn(2, layers, length + 3, DIM, requires_grad=True)
    tokens, counts = adapter(features, torch.full((2,), length))
    sum(row[:count].square().sum() for row, count in zip(tokens, counts.tolist())).backward()
    used = features.grad.abs().sum((0, 1, 3)) > 0
    # These drop the frames after the last complete window.
    kept = {"linear": 9, "linear conv": 9, "window_qformer published": 8, "stacked_transformer": 10}.get(name, length)
    assert used.tolist() == [True] * kept + [False] * (len(used) - kept)
    without_gradient = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()}
    # With one query, the softmax of the attention among queries is constant.
    constant = {f"blocks.{i}.self_attention.{layer}.{kind}" for i in (0, 1) for layer in ("query", "key")
                for kind in ("weight", "bias")}  # fmt: skip
    # The bias of a key adds the same to all scores of a query, which the softmax removes: its gradient is noise.
    unexpected = {n for n in without_gradient if not n.endswith("key.bias")}
    assert unexpected <= (constant if name == "window_qformer published" else set())


@pytest.mark.parametrize("name", [name for name in CASES if name != "qformer"])
def test_hidden_is_the_input_of_the_projection(name):
    adapter, layers = make(name)
    features, frames = torch.randn(2, layers, 10, DIM), torch.tensor([10, 7])
    hidden = adapter.hidden(features, frames)
    torch.testing.assert_close(adapter.projection(hidden), adapter(features, frames)[0])


def test_batch_norm_uses_valid_frames_only():
    features, frames = torch.randn(2, 1, 10, DIM), torch.tensor([10, 4])
    statistics = []
    for noise in (0.0, 5.0):
        adapter, _ = make("conformer")
        noisy = features.clone()
        noisy[1, :, 4:] = noise
        adapter.train()(noisy, frames)
        statistics.append(adapter.blocks[0].convolution.batch_norm.running_mean)
    torch.testing.assert_close(*statistics)


def test_padding_of_a_stream_stays_zero_after_its_norm():
    adapter, _ = make("window_qformer")
    features = torch.randn(1, 1, 6, DIM)
    features[..., 4:, 10:] = 0  # the second encoder has four frames
    normalized = adapter.normalize_streams(features)
    assert not normalized[:, 4:, 10:].any() and normalized[:, :4, 10:].all() and normalized[..., :10].all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "tltr", "layer_heads": 5}, "multiple"),
        ({"type": "qformer", "dim": 10, "heads": 3}, "multiple"),
        ({"type": "window_qformer", "streams": [10, 5]}, r"add up to 15, a frame has 16"),
        ({"type": "mlp_pooling", "pooling": "max"}, "average"),
        ({"type": "conformer", "dim": 20, "heads": 8}, "multiple"),
        ({"type": "conformer", "kernel": 8}, "odd"),
        ({"type": "stacked_transformer", "kernel": 8}, "odd"),
        ({"type": "stacked_transformer", "dim": 20, "heads": 6}, "multiple"),
        ({"type": "conformer", "factor": 3}, "1, 2, 4 or 8"),
        ({"type": "conformer", "factor": 2, "subsampling": "vggnet"}, "striding"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build("adapters", config, feature_dim=DIM, num_layers=1, llm_dim=LLM_DIM)


@pytest.mark.parametrize("name", CASES)
def test_wrong_numbers_of_layers_are_refused(name):
    adapter, layers = make(name)
    with pytest.raises(ValueError, match=f"{layers + 1} layers"):
        adapter(torch.zeros(1, layers + 1, 8, DIM), torch.tensor([8]))
    if layers == 1:
        with pytest.raises(ValueError, match=r"layers: \[-1\]"):
            build("adapters", CASES[name], feature_dim=DIM, num_layers=4, llm_dim=LLM_DIM)
