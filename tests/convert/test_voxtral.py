"""Voxtral's PEFT folders in both module layouts, and the projector of a complete model."""

import json

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.adapters.mlp_pooling import MLPPooling
from audiolm_lite.convert.voxtral import installed_layout, rename
from tests.tiny import tiny_voxtral

PROJECTOR = "multi_modal_projector"


def make_voxtral():
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 6}
    return tiny_voxtral(32, mels=4, positions=8, seed=0, **text).eval()


def logits(model):
    ids = torch.tensor([[1, 6, 6, 7]])
    features = torch.linspace(-1, 1, 4 * 16).reshape(1, 4, 16)
    with torch.no_grad():
        return model(input_ids=ids, input_features=features).logits


@pytest.fixture
def adapted():
    """A tiny Voxtral with PEFT's LoRA on the projector and on one linear layer of the LLM."""
    model = make_voxtral()
    projector = rename(PROJECTOR, installed_layout())
    text = rename("language_model.model.layers.0.self_attn.q_proj", installed_layout())
    targets = [f"{projector}.linear_1", f"{projector}.linear_2", text]
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape)
    return model


def write_layout(model, folder, layout):
    """Write the PEFT folder that the version of transformers with this layout writes."""
    model.save_pretrained(folder)
    prefix = "base_model.model."
    path = folder / "adapter_model.safetensors"
    renamed = {prefix + rename(n.removeprefix(prefix), layout): t for n, t in load_file(path).items()}
    save_file(renamed, path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = [rename(name, layout) for name in config["target_modules"]]
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_names_are_converted_in_both_directions():
    old = ["language_model.lm_head.weight", "language_model.model.layers.0.mlp.up_proj.weight",
           "audio_tower.conv1.bias", "multi_modal_projector.linear_1.weight"]  # fmt: skip
    new = ["lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight", "model.audio_tower.conv1.bias",
           "model.multi_modal_projector.linear_1.weight"]  # fmt: skip
    for one, other in zip(old, new):
        assert rename(one, "new") == rename(other, "new") == other
        assert rename(one, "old") == rename(other, "old") == one
    names = set(make_voxtral().state_dict())
    assert {rename(name, installed_layout()) for name in names} == names


@pytest.mark.parametrize("layout", ["old", "new"])
def test_lora_of_either_layout_has_its_effect(run, tmp_path, adapted, layout):
    write_layout(adapted, tmp_path / "peft", layout)
    assert "6 used" in run("voxtral", tmp_path / "peft", tmp_path / "out")
    loaded = PeftModel.from_pretrained(make_voxtral(), tmp_path / "out" / "lora").eval()
    assert all(tensor.any() for name, tensor in loaded.state_dict().items() if "lora_B" in name)
    torch.testing.assert_close(logits(loaded), logits(adapted))
    assert (logits(loaded) - logits(make_voxtral())).abs().max() > 1e-3


def test_requested_layout_is_written(run, tmp_path, adapted):
    write_layout(adapted, tmp_path / "peft", "new")
    run("voxtral", tmp_path / "peft", tmp_path / "out", "--layout", "old")
    names = list(load_file(tmp_path / "out" / "lora" / "adapter_model.safetensors"))
    assert f"base_model.model.{PROJECTOR}.linear_1.lora_A.weight" in names
    config = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert f"{PROJECTOR}.linear_1" in config["target_modules"] and config["r"] == 2 and config["lora_alpha"] == 4


def test_projector_becomes_an_adapter(run, tmp_path):
    model = make_voxtral()
    model.save_pretrained(tmp_path / "voxtral")
    run("voxtral", tmp_path / "voxtral", tmp_path / "out")
    block = yaml.safe_load((tmp_path / "out" / "adapter.yaml").read_text())
    assert block == {"type": "mlp_pooling", "pooling": "concat", "stride": 4, "bias": False}
    adapter = MLPPooling(8, 1, 12, bias=False)
    adapter.load_state_dict(load_file(tmp_path / "out" / "adapter.safetensors"))
    features = torch.randn(1, 1, 8, 8)
    projector = model.get_submodule(rename(PROJECTOR, installed_layout()))
    torch.testing.assert_close(adapter(features, torch.tensor([8]))[0], projector(features.reshape(1, 2, 32)))


def test_projector_with_its_lora_becomes_an_adapter(run, refused, tmp_path):
    model = make_voxtral()
    model.save_pretrained(tmp_path / "voxtral")
    projector = rename(PROJECTOR, installed_layout())
    targets = [f"{projector}.linear_1", f"{projector}.linear_2"]
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape)
    write_layout(model, tmp_path / "peft", "old")
    run("voxtral", tmp_path / "peft", tmp_path / "out", "--projector", tmp_path / "voxtral")
    block = yaml.safe_load((tmp_path / "out" / "adapter.yaml").read_text())
    adapter = build_adapter(block, feature_dim=8, num_layers=1, llm_dim=12).eval()
    adapter.load_state_dict(load_file(tmp_path / "out" / "adapter.safetensors"))
    features = torch.randn(1, 1, 8, 8)
    adapted = model.get_submodule(f"base_model.model.{projector}")
    torch.testing.assert_close(adapter(features, torch.tensor([8]))[0], adapted(features.reshape(1, 2, 32)))
    edit(tmp_path / "peft", lambda t: [x.zero_() for n, x in t.items() if "lora_B" in n], "adapter_model.safetensors")
    refused("every lora_B", "voxtral", tmp_path / "peft", "--projector", tmp_path / "voxtral")


def edit(folder, change, file="adapter_config.json"):
    path = folder / file
    if file.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = load_file(path)
        change(content)
        save_file(content, path)


def test_only_a_plain_lora_with_an_effect_is_accepted(refused, tmp_path, adapted):
    folder, tensors = tmp_path / "peft", "adapter_model.safetensors"
    for message, change, file in [
        ("every lora_B", lambda t: [x.zero_() for n, x in t.items() if "lora_B" in n], tensors),
        ("extra is unexpected", lambda t: t.update(extra=torch.ones(1)), tensors),
        ("lora_A.weight is missing", lambda t: t.pop(next(n for n in t if "lora_A" in n)), tensors),
        ("plain LORA", lambda c: c.update(peft_type="IA3"), "adapter_config.json"),
        ("plain LORA", lambda c: c.update(use_dora=True), "adapter_config.json"),
        ("rank_pattern", lambda c: c.update(rank_pattern={"linear_1": 3}), "adapter_config.json"),
    ]:
        adapted.save_pretrained(folder)
        edit(folder, change, file)
        refused(message, "voxtral", folder)
    adapted.save_pretrained(folder)
    (folder / "adapter_config.json").unlink()
    refused("adapter_config.json", "voxtral", folder)
