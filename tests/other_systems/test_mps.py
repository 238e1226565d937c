"""MPS, Apple's GPU, has no float64 and lacks some operations: a CPU that refuses both stands in for it."""

import sys
from functools import cache
from importlib.resources import files

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.precision import float64_device
from audiolm_lite.decoding import joint_ctc
from audiolm_lite.deploy.backends import available_backends
from audiolm_lite.encoders.fused import Fused
from audiolm_lite.modeling import ctc
from audiolm_lite.training.build import configure_model
from tests.other_systems.pipeline import run
from tests.training.toy import make_brain, make_hparams, make_model

# Chosen on the CPU in place of an operation that MPS has.
OF_THE_CPU = "_scaled_dot_product_flash_attention_for_cpu"


@cache
def operations() -> dict[str, tuple[set[str], str]]:
    """Keys of the implementations of each operation in the installed torch, and the operation it is made from."""
    text = files("torchgen").joinpath("packaged/ATen/native/native_functions.yaml").read_text(encoding="utf-8")
    found = {}
    for entry in yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        keys = {
            key.strip()
            for group in entry.get("dispatch", {"CompositeImplicitAutograd": ""})
            for key in group.split(",")
        }
        found[entry["func"].split("(")[0]] = keys, entry.get("structured_delegate", "")
    return found


def is_on_mps(name: str) -> bool:
    keys, delegate = operations()[name]
    return bool(delegate and is_on_mps(delegate)) or any(key == "MPS" or key.startswith("Composite") for key in keys)


class LikeMPS(TorchDispatchMode):
    """Refuses float64 tensors and operations that MPS does not have."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function).removeprefix("aten.").removesuffix(".default")
        if name in operations() and OF_THE_CPU not in name and not is_on_mps(name):
            raise NotImplementedError(f"MPS has no {name}")
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError("MPS has no float64")
        return result


@pytest.fixture
def like_mps():
    with LikeMPS():
        yield


def test_the_stand_in_refuses_what_mps_lacks(like_mps):
    for make in (lambda: torch.zeros(2).double(), lambda: torch.tensor([1.0], dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(NotImplementedError, match="ctc_loss"):
        one = torch.tensor([1])
        torch.nn.functional.ctc_loss(torch.zeros(1, 1, 3), torch.tensor([[1]]), one, one)


def test_extraction_training_evaluation_and_answers(like_mps, tmp_path):
    assert isinstance(run(tmp_path, workers=0), str)


def test_float64_is_computed_on_the_cpu():
    assert float64_device("mps:0") == torch.device("cpu") and float64_device("cpu") == torch.device("cpu")


class Elsewhere(TorchDispatchMode):
    """Refuses float64 on the meta device, on which `float64_device` is patched to compute nothing."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            assert result.device.type == "cpu"
            self.made += 1
        return result


def test_sampling_and_joint_decoding_ask_where_float64_is(monkeypatch):
    """The numbers of a device without float64 are moved before they are made double."""
    asked = []

    def ask(device):
        asked.append(torch.device(device))
        return torch.device("cpu")

    generate = sys.modules["audiolm_lite.decoding.generate"]  # the package has a function of this name
    monkeypatch.setattr(generate, "float64_device", ask)
    monkeypatch.setattr(joint_ctc, "float64_device", ask)
    device = torch.device("meta")
    with Elsewhere() as mode:
        chooser = generate._Chooser(generate.Sampling(temperature=1.0), 1, 4, 3, device)
        assert chooser.draws.device.type == "cpu" and chooser.seen.device == device
        with pytest.raises(NotImplementedError):  # the meta device has no numbers to move
            joint_ctc.PrefixScores(torch.zeros(1, 2, 3, device=device), torch.tensor([2], device=device))
    assert asked == [device, device] and mode.made == 1


@pytest.mark.parametrize("align", ["nearest", "linear"])
def test_fused_features_are_resampled_without_float64_on_their_device(align):
    with Elsewhere() as mode:
        fused = Fused.__new__(Fused)
        torch.nn.Module.__init__(fused)
        fused.align = align
        features = torch.zeros(2, 5, 3, device="meta")
        assert fused._resample(features, torch.tensor([5, 3], device="meta"), 8, 0.5).shape == (2, 8, 3)
    assert mode.made


def test_the_ctc_of_training_is_computed_on_the_cpu(monkeypatch):
    """Loss and gradient are those of the CPU, whatever device asks."""
    scores, target = torch.randn(6, 4).log_softmax(-1), torch.tensor([1, 2])
    expected = ctc._occupation(scores, target)

    class OnMPS(torch.Tensor):
        device = torch.device("mps")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: (self, device), raising=True)
    loss, occupied = ctc._occupation(scores.as_subclass(OnMPS), target)
    assert loss[1] == occupied[1] == torch.device("mps")
    torch.testing.assert_close((loss[0], occupied[0]), expected)


def test_what_mps_cannot_do_is_refused_with_the_remedy(tmp_path):
    reasons = available_backends("mps")
    assert reasons["eager"] is None and "use eager" in reasons["inductor"] and "use eager" in reasons["aoti"]
    with pytest.raises(ConfigError, match="fp16 needs a GPU with CUDA: use --precision bf16"):
        make_brain(tmp_path, precision="fp16")
    hparams = make_hparams(tmp_path, compile=True)
    with pytest.raises(ConfigError, match="compile is for the CPU and CUDA, not for mps: set it to false"):
        configure_model(make_model(), hparams, "mps")
