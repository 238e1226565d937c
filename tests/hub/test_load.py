"""Model folders that are refused: damaged, of another format, or with tensors that do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.language.prompt import PromptError


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter.safetensors", lambda t: t.pop("projection.weight"), "projection.weight is missing"),
        ("adapter.safetensors", lambda t: t.update(extra=torch.ones(1)), "to this adapter, for example extra"),
        ("adapter.safetensors", lambda t: t.update({"projection.bias": torch.ones(3)}), "has shape"),
        ("lora/adapter_model.safetensors", lambda t: t.pop(sorted(t)[0]), "is not in the file"),
        ("lora/adapter_model.safetensors", lambda t: t.update(x=torch.ones(1)), "x does not belong to this LLM"),
        (
            "lora/adapter_model.safetensors",
            lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name],
            "every lora_B is zero",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, file, change, message):
    folder, _, _ = saved
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)


def test_damaged_folders_and_other_formats_are_refused(saved, sources):
    folder, _, _ = saved
    with pytest.raises(ModelFolderError, match="no audiolm_lite.json"):
        load_model(sources)
    (folder / "adapter.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelFolderError, match="damaged"):
        load_model(folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(ModelFolderError, match="format 2"):
        load_model(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"template": None}))
    with pytest.raises(ModelFolderError, match='"template" must be a str'):
        load_model(folder)


def test_a_template_with_special_tokens_of_another_llm_is_refused(saved):
    folder, _, _ = saved
    config = json.loads((folder / CONFIG_FILE).read_text())
    template = config["template"].replace("{audio}", "<|eot_id|>{audio}")
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"template": template}))
    with pytest.raises(PromptError, match=r"<\|eot_id\|> would become"):
        load_model(folder)


def test_missing_pretrained_model_is_named(saved, sources):
    folder, _, _ = saved
    shutil.rmtree(sources / "llama")
    with pytest.raises(ModelFolderError, match="llm source .*llama does not exist on this machine"):
        load_model(folder)


def test_configuration_cannot_run_code(saved):
    folder, _, _ = saved
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["adapter"]["type"] = "os.system"
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown type"):
        load_model(folder)
