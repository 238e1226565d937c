"""`precision: auto` is bf16 exactly where the device multiplies it."""

import pytest
import torch

from audiolm_lite.config.precision import multiplies_bf16, training_precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16"), ({"avx512_f": True}, "fp32")],
)
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="torch cannot list the CPU's features")
def test_auto_follows_the_processor(capabilities, precision, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level("INFO"):
        assert training_precision("auto", "cpu") == precision
    assert f"precision: {precision} (auto" in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert multiplies_bf16("cuda:0") is native
    assert training_precision("auto", "cuda:0") == ("bf16" if native else "fp32")


def test_a_given_precision_stays():
    assert [training_precision(name, "cpu") for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
