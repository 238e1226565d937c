"""Checkpoints that are incomplete, of another format, or contain code are refused by name; nothing is written."""

import json
import pickle

import pytest
import torch

from audiolm_lite.config.errors import UserError
from tests.convert import published


@pytest.fixture
def tensors(lora):
    """A SLAM-LLM checkpoint with a LoRA."""
    adapter = published.make_adapter({"type": "linear", "hidden_dim": 24})
    return published.slam_linear(adapter) | {f"llm.{name}": tensor for name, tensor in lora.items()}


@pytest.fixture
def damaged(refused, tensors, tmp_path):
    """Expect a message for the checkpoint after a change."""

    def call(message, change, *arguments):
        change(tensors)
        torch.save(tensors, tmp_path / "model.pt")
        refused(message, "slam_llm", tmp_path / "model.pt", *arguments)

    return call


def test_unexpected_tensor(damaged):
    damaged(
        "encoder_projector.extra.weight is unexpected",
        lambda t: t.update({"encoder_projector.extra.weight": t["encoder_projector.linear1.bias"]}),
    )


def test_unexpected_tensor_of_the_llm(damaged):
    damaged("lora_magnitude_vector is unexpected", lambda t: t.update(
        {"llm.base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(1)}))  # fmt: skip


@pytest.mark.parametrize("name", ["linear2.bias", "linear1.bias"])
def test_missing_tensor(damaged, name):
    ours = {"linear2.bias": "projection.bias", "linear1.bias": "stacked.bias"}[name]
    damaged(f"{ours} is missing", lambda t: t.pop(f"encoder_projector.{name}"))


def test_missing_tensor_that_sizes_are_read_from(damaged):
    damaged("no tensor for stacked.weight", lambda t: t.pop("encoder_projector.linear1.weight"))


@pytest.mark.parametrize("name", ["layers.1.self_attn.v_proj.lora_A", "layers.0.self_attn.q_proj.lora_B"])
def test_lora_with_a_without_b_or_b_without_a(damaged, name):
    damaged(f"{name}.weight is missing", lambda t: t.pop(f"llm.base_model.model.model.{name}.default.weight"))


def test_tensor_of_another_shape(damaged):
    damaged("is misshapen", lambda t: t.update({"encoder_projector.linear2.bias": torch.ones(3)}))


def test_lora_without_effect(damaged):
    damaged("every lora_B", lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name])


def test_two_names_for_one_tensor(damaged):
    damaged("a second tensor for adapter: stacked.bias|are both called", lambda t: t.update(
        {"encoder_projector._orig_mod.linear1.bias": t["encoder_projector.linear1.bias"]}))  # fmt: skip


def test_table_is_printed_before_the_error(tensors, tmp_path, run, capsys):
    tensors.pop("encoder_projector.linear2.bias")
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(UserError):
        run("slam_llm", tmp_path / "model.pt", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "1 missing" in printed and "encoder_projector.linear1.weight" in printed
    with pytest.raises(UserError, match="check that this is its format"):
        run("salmonn", tmp_path / "model.pt", tmp_path / "out")
    assert "11 unexpected" in capsys.readouterr().out


class Code:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return (open, ("/nonexistent/was_run", "w"))


@pytest.mark.parametrize("wrap", [lambda code: {"model": code}, lambda code: {"w": torch.ones(1), "hook": code}])
def test_pickle_with_code_is_refused(refused, tmp_path, wrap):
    torch.save(wrap(Code()), tmp_path / "model.pt")
    refused("would run its code", "slam_llm", tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(wrap(Code())))
    refused("would run its code", "slam_llm", tmp_path / "plain.pt")


def test_files_that_cannot_be_read(refused, tensors, tmp_path):
    refused("no such file", "salmonn", tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    refused("contains none of model.ckpt", "ltu_as", tmp_path / "empty")
    torch.save(tensors, tmp_path / "complete.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "complete.pt").read_bytes()[:2000])
    refused("damaged|would run", "slam_llm", tmp_path / "truncated.pt")
    (tmp_path / "truncated.safetensors").write_bytes(b"12345678{")
    refused("damaged", "nemo_salm", tmp_path / "truncated.safetensors")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "settings.pt")
    refused("contains no tensors, but epoch, lr", "slam_llm", tmp_path / "settings.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    refused("contains a list", "slam_llm", tmp_path / "list.pt")


def test_unknown_alpha(refused, lora, tmp_path):
    adapter = published.make_adapter({"type": "identity"})
    state = {f"perception.proj.{name.split('.')[1]}": tensor for name, tensor in adapter.state_dict().items()}
    torch.save(state | {f"llm.{name}": tensor for name, tensor in lora.items()}, tmp_path / "salm.ckpt")
    refused("--lora_alpha", "nemo_salm", tmp_path / "salm.ckpt")


def test_peft_folder_of_rslora(refused, lora_llm, tmp_path):
    folder = tmp_path / "checkpoint"
    lora_llm.save_pretrained(folder / "lora", save_embedding_layers=False)
    path = folder / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    torch.save(published.slam_linear(published.make_adapter({"type": "linear"})), folder / "model.pt")
    refused("rsLoRA", "slam_llm", folder)


def test_file_of_another_format(refused, tensors, tmp_path):
    torch.save(tensors, tmp_path / "model.pt")
    for name in ("salmonn", "nemo_salm", "ltu_as", "voxtral"):
        refused("no tensor for|do not fit the format", name, tmp_path / "model.pt")


def test_existing_folder_is_not_overwritten(run, tensors, tmp_path):
    torch.save(tensors, tmp_path / "model.pt")
    run("slam_llm", tmp_path / "model.pt", tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        run("slam_llm", tmp_path / "model.pt", tmp_path / "out")
