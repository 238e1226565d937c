"""Other libraries' losses give what `chunked` gives: torch's own computes here, of the others it is the call."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import collate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.fused_loss import fused_loss, load_kernel
from audiolm_lite.training.build import build_model
from audiolm_lite.training.trainable import select_trainable
from tests.training.toy import ToyData, make_brain, make_hparams, make_model

# As the libraries name them: module, function, and the parameters that come before options.
CALLS = {
    "liger": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
    "cut_cross_entropy": ("cut_cross_entropy", "linear_cross_entropy"),
}
needs_torch = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 brought the function")


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for Liger, cut cross-entropy and a GPU: they compute plainly and note how they are called."""
    calls = []

    def function(hidden, weight, targets, *, reduction="mean"):
        calls.append((hidden.shape, weight.shape, targets.shape, hidden.dtype, weight.dtype, reduction))
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction=reduction)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for path, name in CALLS.values():
        module = ModuleType(path)
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, path, module)
    for parent in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    return calls


def with_kernel(kernel, trainable):
    model = make_model(dropout=0.0)
    model = AudioLanguageModel(model.adapter, model.llm, loss_kernel=kernel)
    select_trainable(model, trainable)
    return model.train()


def loss_and_gradients(model):
    loss = model(collate(list(ToyData(8))))
    loss.total.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trainable", [["adapter.*", "llm.*lora_*"], ["*"]], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("kernel", [pytest.param("torch", marks=needs_torch), *CALLS])
def test_loss_and_gradients_are_those_of_chunks(kernel, trainable, request):
    expected, gradients = loss_and_gradients(with_kernel("chunked", trainable))
    calls = request.getfixturevalue("libraries") if kernel in CALLS else []
    model = with_kernel(kernel, trainable)
    loss, found = loss_and_gradients(model)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-5, atol=1e-5)
    assert loss.tokens == expected.tokens and loss.correct is None
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    if kernel in CALLS:
        count, vocabulary, dim = int(loss.tokens), *model.head.weight.shape
        assert calls == [((count, dim), (vocabulary, dim), (count,), torch.float32, torch.float32, "sum")]
    with torch.no_grad():
        ranked = model(collate(list(ToyData(8))))
    assert ranked.correct == expected.correct and len(calls) <= 1


def test_kernels_compute_in_the_precision_of_autocast(libraries):
    head, hidden, targets = nn.Linear(8, 40, bias=False), torch.randn(5, 8), torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_loss(load_kernel("liger", head), head, hidden, targets)
    assert libraries[0][3:5] == (torch.bfloat16, torch.bfloat16) and loss.dtype == torch.float32
    fused_loss(load_kernel("liger", head.bfloat16()), head, hidden, targets)
    assert libraries[1][3:5] == (torch.bfloat16, torch.bfloat16)


@needs_torch
def test_a_run_is_the_same_to_rounding(tmp_path):
    """Accuracy included, and with a batch in which nothing is supervised."""
    found = []
    for kernel in ("chunked", "torch"):
        torch.manual_seed(1)
        brain = make_brain(tmp_path / kernel, with_kernel(kernel, ["*"]))
        data = ToyData(20)
        data.items[3].labels[:] = [-100] * len(data.items[3].labels)
        brain.fit_stage(data, ToyData(6, seed=1))
        found.append(brain.summary["metrics"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("kernel", CALLS)
def test_what_is_missing_is_said(kernel, monkeypatch):
    head = nn.Linear(4, 8, bias=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"loss_kernel {kernel} needs a GPU: use chunked or torch"):
        load_kernel(kernel, head)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, CALLS[kernel][0], None)
    with pytest.raises(ConfigError, match=rf'loss_kernel {kernel}: .*pip install "audiolm_lite\[kernels\]"'):
        load_kernel(kernel, head)


def test_what_does_not_go_together_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="takes an output layer that is one matrix"):
        load_kernel("torch", nn.Linear(4, 8))
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(ConfigError, match="loss_kernel torch needs torch 2.13, and this is"):
        load_kernel("torch", nn.Linear(4, 8, bias=False))
    hparams = make_hparams(tmp_path, distillation={"text": "transcript"}, loss_kernel="torch")
    with pytest.raises(ConfigError, match="loss_kernel torch makes no logits, which distillation needs: use chunked"):
        build_model(hparams)
