"""Losses in chunks and by torch's kernel equal those over all logits in value, count and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import collate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.losses import (
    HALF_SCALE,
    check_loss_kernel,
    chunk_positions,
    chunked_loss,
    cross_entropy,
    torch_cross_entropy,
)
from audiolm_lite.training.build import build_model
from audiolm_lite.training.trainable import select_trainable
from tests.training.toy import ToyData, make_brain, make_hparams, make_model

DIM, VOCABULARY = 8, 40
needs_torch_kernel = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="the kernel is part of torch since 2.13"
)


def run(chunk, positions, trainable, scale=1.0):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, VOCABULARY)).requires_grad_(trainable)
    hidden = torch.randn(positions, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (positions,))
    total, count = chunked_loss(cross_entropy, head, 2 * hidden, [targets], chunk)
    (scale * total).backward()
    return total.detach(), count, hidden.grad, *(parameter.grad for parameter in head.parameters() if trainable)


@settings(max_examples=30, deadline=None)
@given(positions=st.integers(0, 30), chunk=st.integers(1, 31), trainable=st.booleans(), scale=st.sampled_from([1, 0.3]))
def test_any_chunk_gives_the_same_loss_and_gradients(positions, chunk, trainable, scale):
    in_chunks, at_once = run(chunk, positions, trainable, scale), run(positions + 1, positions, trainable, scale)
    for actual, expected in zip(in_chunks, at_once, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_head_never_computes_more_logits_than_one_chunk():
    sizes = []
    head = nn.Linear(DIM, VOCABULARY)
    head.register_forward_hook(lambda *args: sizes.append(len(args[-1])))
    hidden = torch.randn(10, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (10,))
    total, count = chunked_loss(cross_entropy, head, hidden, [targets], 4)
    with torch.no_grad():
        again, same = chunked_loss(cross_entropy, head, hidden, [targets], 4)
    assert sizes == [4, 4, 2] * 2
    torch.testing.assert_close(again, total)
    assert same == count and not again.requires_grad and total.requires_grad and not count.requires_grad


def test_autocast_runs_the_head_in_its_precision():
    head = nn.Linear(DIM, VOCABULARY)
    hidden = torch.randn(9, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (9,))
    results = []
    for chunk in (2, 9):
        hidden.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = chunked_loss(cross_entropy, head, hidden, [targets], chunk)
        total.backward()
        results.append((total.detach(), hidden.grad))
    for in_chunks, at_once in zip(*results):
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-2, atol=1e-2)
    assert results[0][0].dtype == torch.float32


def float16_gradients(states, weights, loss_scale, chunk):
    """Gradients of hidden states and output layer, with the loss scale of training removed."""
    head, hidden = nn.Linear(*weights.T.shape, bias=False), states.clone().requires_grad_()
    head.weight.data = weights.clone()
    with torch.autocast("cpu", torch.float16):
        total, _ = chunked_loss(cross_entropy, head, hidden, [torch.zeros(len(states), dtype=torch.int64)], chunk)
    (loss_scale * total).backward()
    return hidden.grad / loss_scale, head.weight.grad / loss_scale


def test_float16_keeps_small_gradients():
    """Without a factor, float16 has 0 for the probability exp(-20). That of the target is 1 in float32, too."""
    weights, states = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, -1.0]]), torch.tensor([[0.0, 10.0]]).repeat(6, 1)
    probability = torch.tensor(-20.0).exp()
    expected = torch.stack([probability, -2 * probability]).expand(6, 2)
    for chunk in (2, 6):
        gradient, of_head = float16_gradients(states, weights, 2.0**16, chunk)
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=0)
        torch.testing.assert_close(of_head[1:, 1], (60 * probability).expand(2), rtol=1e-2, atol=0)


def test_float16_gradients_that_the_factor_would_make_infinite_are_finite():
    torch.manual_seed(0)
    states, weights = torch.randn(6, 3) / 30, 60 * torch.randn(5, 3)
    in_two, in_one = (float16_gradients(states, weights, 1.0, chunk) for chunk in (2, 6))
    assert in_one[0].abs().max() * HALF_SCALE > torch.finfo(torch.float16).max
    for in_chunks, at_once in zip(in_two, in_one):
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("vocabulary", "chunk", "positions"), [(131072, 0, 512), (2**30, 0, 1), (100, 7, 7)])
def test_default_chunk_fits_the_vocabulary(vocabulary, chunk, positions):
    assert chunk_positions(vocabulary, chunk) == positions


def model_with_kernel(kernel, trainable):
    model = make_model(dropout=0.0)
    model = AudioLanguageModel(model.adapter, model.llm, loss_kernel=kernel)
    select_trainable(model, trainable)
    return model.train()


def loss_and_gradients(model):
    loss = model(collate(list(ToyData(8))))
    loss.total.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@needs_torch_kernel
@pytest.mark.parametrize("trainable", [["adapter.*", "llm.*lora_*"], ["*"]], ids=["frozen head", "trained head"])
def test_the_kernel_of_torch_gives_the_loss_and_gradients_of_chunks(trainable):
    expected, expected_gradients = loss_and_gradients(model_with_kernel("chunked", trainable))
    model = model_with_kernel("torch", trainable)
    loss, gradients = loss_and_gradients(model)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-5, atol=1e-5)
    assert loss.tokens == expected.tokens and loss.correct is None
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad():
        ranked = model(collate(list(ToyData(8))))
    assert ranked.correct == expected.correct


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_kernel_of_torch_computes_in_the_dtype_of_autocast_or_of_the_head(monkeypatch, dtype, autocast):
    calls = []

    def kernel(hidden, weight, targets, *, reduction, options):
        calls.append((hidden.dtype, weight.dtype, reduction))
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction=reduction)

    monkeypatch.setattr(F, "linear_cross_entropy", kernel, raising=False)
    monkeypatch.setattr(torch.nn, "LinearCrossEntropyOptions", dict, raising=False)
    head, hidden, targets = nn.Linear(8, 40, bias=False).to(dtype), torch.randn(5, 8), torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = torch_cross_entropy(head, hidden, targets)
    expected = torch.bfloat16 if autocast else dtype
    assert calls == [(expected, expected, "sum")] and loss.dtype == torch.float32


@needs_torch_kernel
def test_a_run_with_the_kernel_of_torch_ends_with_the_same_metrics(tmp_path):
    """Accuracy included, and with a batch in which nothing is supervised."""
    metrics = []
    for kernel in ("chunked", "torch"):
        torch.manual_seed(1)
        brain = make_brain(tmp_path / kernel, model_with_kernel(kernel, ["*"]))
        data = ToyData(20)
        data.items[3].labels[:] = [-100] * len(data.items[3].labels)
        brain.fit_stage(data, ToyData(6, seed=1))
        metrics.append(brain.summary["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


def test_loss_kernels_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="loss_kernel is 'liger', it must be one of chunked, torch"):
        check_loss_kernel("liger", nn.Linear(4, 8, bias=False))
    with pytest.raises(ConfigError, match="takes an output layer that is one matrix"):
        check_loss_kernel("torch", nn.Linear(4, 8))
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(ConfigError, match="loss_kernel torch needs torch 2.13, and this is"):
        check_loss_kernel("torch", nn.Linear(4, 8, bias=False))
    hparams = make_hparams(tmp_path, distillation={"text": "transcript"}, loss_kernel="torch")
    with pytest.raises(
        ConfigError, match="loss_kernel torch computes no logits, which distillation needs: use chunked"
    ):
        build_model(hparams)
