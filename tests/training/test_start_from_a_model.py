"""Tests of training that starts from a model folder, such as a converted checkpoint, instead of an earlier stage."""

import pytest
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.hub.folder import ModelFolderError
from audiolm_lite.hub.load import load_trained
from audiolm_lite.hub.save import save_model
from audiolm_lite.training.handover import load_previous_stage

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}


def state(model, *prefixes):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(prefixes)}


@pytest.fixture
def saved(sources, make_experiment, make_model):
    """A model folder with a LoRA, its experiment, and the saved tensors."""
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    save_model(model, experiment, sources / "published")
    return sources / "published", experiment, state(model, "adapter.", "llm.")


def start(model, experiment, folder):
    return load_previous_stage(model, {**experiment, "stage": 1, "previous_stage": str(folder), "output_root": "x"})


def test_adapter_and_lora_are_those_of_the_folder(saved, make_model):
    folder, experiment, before = saved
    model = make_model(experiment, with_encoder=False)
    loaded = start(model, experiment, folder)
    after = state(model, "adapter.", "llm.")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert set(loaded) == {name for name in before if name.startswith("adapter.") or "lora_" in name}


def test_a_new_lora_on_the_adapter_keeps_its_initial_values(saved, make_model):
    folder, experiment, before = saved
    adapted = experiment | {"adapter": experiment["adapter"] | {"lora": LORA}}
    model = make_model(adapted, with_encoder=False)
    own = {name: tensor for name, tensor in state(model, "adapter.").items() if "lora_" in name}
    loaded = start(model, adapted, folder)
    after = state(model, "adapter.")
    assert own and all(torch.equal(tensor, after[name]) for name, tensor in own.items())
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if "lora_" not in name}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in before.items() if name.startswith("adapter."))
    assert not any("lora_" in name for name in loaded if name.startswith("adapter."))


def test_another_adapter_or_a_missing_lora_block_is_refused(saved, make_model):
    folder, experiment, _ = saved
    other = experiment | {"adapter": {"type": "tltr", "layer_heads": 4}}
    with pytest.raises(ConfigError, match="another adapter: layer_heads was 2, is now 4"):
        start(make_model(other), other, folder)
    bare = experiment | {"llm": experiment["llm"] | {"lora": None}}
    with pytest.raises(ModelFolderError, match="has a LoRA, and the llm block has none"):
        load_trained(make_model(bare), folder)
