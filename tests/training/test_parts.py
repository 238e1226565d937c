"""Trainable parameters by pattern, their optimiser groups, and the table of parts."""

import pytest
import torch
from torch import nn

from audiolm_lite.parts import ConfigError
from audiolm_lite.training.parts import parameter_groups, parts_table, select_trainable


@pytest.fixture
def model():
    adapter = nn.ModuleDict({"time_block": nn.Linear(4, 4), "projection": nn.Linear(4, 8)})
    llm = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "base": nn.Linear(8, 8)})
    return nn.ModuleDict({"adapter": adapter, "llm": llm})


def test_exactly_the_matching_parameters_train(model):
    names = select_trainable(model, ["adapter.projection.*", "llm.*lora_*"])
    assert names == ["adapter.projection.weight", "adapter.projection.bias", "llm.lora_A.weight"]
    assert not model["llm"]["base"].weight.requires_grad
    assert select_trainable(model, ["llm.base.bias"]) == ["llm.base.bias"]


def test_a_pattern_that_matches_nothing_is_an_error(model):
    with pytest.raises(ConfigError, match=r"'adapter.projektion.weight' matches no parameter; .*adapter.projection"):
        select_trainable(model, ["adapter.projektion.weight"])


def test_a_quantised_weight_cannot_train(model):
    model["llm"]["base"].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"llm.base.weight is stored as torch.int8"):
        select_trainable(model, ["llm.*"])


def test_groups_take_the_first_matching_rate_and_spare_vectors_from_decay(model):
    select_trainable(model, ["adapter.*"])
    groups = parameter_groups(model, {"adapter.projection.*": 1e-3, "adapter.*": 1e-4}, weight_decay=0.1)
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found == {
        "adapter.projection.weight": (1e-3, 0.1),
        "adapter.projection.bias": (1e-3, 0.0),
        "adapter.time_block.weight": (1e-4, 0.1),
        "adapter.time_block.bias": (1e-4, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == 4


def test_every_trainable_parameter_needs_a_rate(model):
    select_trainable(model, ["adapter.*", "llm.lora_A.*"])
    with pytest.raises(ConfigError, match="no pattern matches llm.lora_A.weight"):
        parameter_groups(model, {"adapter.*": 1e-3}, 0.0)
    with pytest.raises(ConfigError, match="'llm.base.*' applies to no trainable parameter"):
        parameter_groups(model, {"adapter.*": 1e-3, "llm.*": 1e-3, "llm.base.*": 1e-3}, 0.0)


def test_table_says_what_trains_at_which_rate(model):
    select_trainable(model, ["adapter.projection.*", "llm.lora_A.*"])
    groups = parameter_groups(model, {"adapter.*": 1e-3, "llm.*": 2e-4}, 0.0)
    rows = {line.split("  ")[0]: line.split() for line in parts_table(model, groups).splitlines()}
    assert rows["adapter.time_block"][1:5] == ["20", "0", "-", "float32"]
    assert rows["adapter.projection"][1:5] == ["40", "40", "0.001", "float32"]
    assert rows["llm LoRA"][2:6] == ["16", "16", "0.0002", "float32"]
    assert rows["total"][1:3] == ["148", "56"]
