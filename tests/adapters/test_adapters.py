"""Adapters: shapes, counts, independence of padding and of the batch, and published reference tensors."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from audiolm_lite.adapters.linear import LinearStack
from audiolm_lite.adapters.tltr import TLTR

DIM, LLM_DIM = 16, 12


def make(name):
    torch.manual_seed(0)
    if name == "tltr":
        return TLTR(DIM, num_layers=3, llm_dim=LLM_DIM, time_heads=2, layer_heads=4).eval(), 3
    return LinearStack(DIM, num_layers=1, llm_dim=LLM_DIM, stride=3, hidden_dim=20).eval(), 1


def parity(case):
    """Yield (config, tensors) of every reference file of one published module, whatever the files are called."""
    folder = os.environ.get("AUDIOLM_LITE_PARITY_DIR")
    if not folder:
        pytest.skip("reference tensors not found: set AUDIOLM_LITE_PARITY_DIR to their folder")
    found = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
            if config["case"] == case:
                found.append((config, load_file(path)))
    assert found, f"{folder} holds no reference of case {case}"
    return found


@pytest.mark.parametrize("name", ["tltr", "linear"])
def test_shapes_and_counts(name):
    adapter, layers = make(name)
    frames = torch.tensor([10, 7])
    tokens, counts = adapter(torch.randn(2, layers, 10, DIM), frames)
    assert counts.tolist() == [adapter.num_tokens(10), adapter.num_tokens(7)]
    assert tokens.shape == (2, counts.max(), LLM_DIM)
    hidden = adapter.hidden(torch.randn(2, layers, 10, DIM), frames)
    assert hidden.shape == (2, counts.max(), adapter.projection.in_features)


@pytest.mark.parametrize("name", ["tltr", "linear"])
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), extra=st.integers(0, 5))
def test_tokens_do_not_depend_on_padding_or_batch(name, lengths, extra):
    adapter, layers = make(name)
    generator = torch.Generator().manual_seed(sum(lengths))
    clips = [torch.randn(layers, length, DIM, generator=generator) for length in lengths]
    # what lies in the padding must not matter, so it is noise rather than zeros
    padded = 3 * torch.randn(len(clips), layers, max(lengths) + extra, DIM, generator=generator)
    for row, clip in zip(padded, clips):
        row[:, : clip.shape[1]] = clip
    with torch.no_grad():
        together, counts = adapter(padded, torch.tensor(lengths))
        for clip, row, count in zip(clips, together, counts.tolist()):
            alone, number = adapter(clip[None], torch.tensor([clip.shape[1]]))
            assert number.item() == count
            torch.testing.assert_close(alone[0], row[:count], rtol=0, atol=1e-5)


def test_wrong_layer_counts_are_named():
    with pytest.raises(ValueError, match="layers: \\[-1\\]"):
        LinearStack(DIM, num_layers=4, llm_dim=LLM_DIM)
    with pytest.raises(ValueError, match="2 layers"):
        make("tltr")[0](torch.zeros(1, 2, 5, DIM), torch.tensor([5]))
    with pytest.raises(ValueError, match="multiple"):
        TLTR(DIM, num_layers=2, llm_dim=LLM_DIM, layer_heads=5)


def test_tltr_equals_the_published_module():
    names = {"attn.query": "query", "attn.key": "key", "attn.value": "value", "attn.out": "out"}
    names |= {"attn_ln": "attention_norm", "mlp_ln": "mlp_norm", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}
    for config, tensors in parity("ltu_tltr"):
        adapter = TLTR(
            config["rep_dim"], config["n_layer"], config["llm_dim"], config["time_heads"], config["layer_heads"]
        ).eval()
        state = {f"projection.{kind}": tensors[f"state.1.proj.{kind}"] for kind in ("weight", "bias")}
        for block, ours in (("time_tr", "time_block"), ("layer_tr", "layer_block")):
            for key, value in tensors.items():
                prefix = f"state.0.at_model.{block}."
                if key.startswith(prefix):
                    module, kind = key.removeprefix(prefix).rsplit(".", 1)
                    state[f"{ours}.{names[module]}.{kind}"] = value
        adapter.load_state_dict(state, strict=True)
        features = tensors["input.audio_rep"]
        frames = torch.full((features.shape[0],), features.shape[2])
        with torch.no_grad():
            time = adapter.time_block(features.flatten(0, 1))
            torch.testing.assert_close(time, tensors["output.time_tr"], rtol=0, atol=2e-5)
            tokens, counts = adapter(features, frames)
        torch.testing.assert_close(tokens, tensors["output.projected"], rtol=0, atol=2e-5)
        assert counts.equal(frames)


def test_linear_stack_equals_the_published_module():
    for config, tensors in parity("slam_linear"):
        features = tensors["input.encoder_outs"]
        adapter = LinearStack(config["encoder_dim"], 1, config["llm_dim"], config["encoder_projector_ds_rate"]).eval()
        names = {"stacked": "linear1", "projection": "linear2"}
        state = {
            f"{ours}.{kind}": tensors[f"state.encoder_projector.{theirs}.{kind}"]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
        adapter.load_state_dict(state, strict=True)
        with torch.no_grad():
            tokens, counts = adapter(features[:, None], torch.full((features.shape[0],), features.shape[1]))
        torch.testing.assert_close(tokens, tensors["output.projected"], rtol=0, atol=2e-5)
        assert counts.tolist() == [tokens.shape[1]] * tokens.shape[0]
