"""Tests of trainable parameters by pattern, of their optimiser groups, and of the table of parts."""

import importlib.util

import pytest
import torch
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import OPTIMIZERS
from audiolm_lite.config.registry import build
from audiolm_lite.training.optimizer import build_optimizer, set_learning_rates
from audiolm_lite.training.trainable import parameter_groups, parameter_table, select_trainable
from tests import tiny

DEFAULTS = {"weight_decay": 0.0, "schedule": "linear", "warmup_steps": 10}


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
    with pytest.raises(
        ConfigError, match=r"'adapter.projektion.weight' matches no parameter; did you mean 'adapter.projection"
    ):
        select_trainable(model, ["adapter.projektion.weight"])


ENCODERS = [
    {"type": "whisper", "source": tiny.WHISPER},
    *({"type": "ssl", "source": {**tiny.SSL, "model_type": name}} for name in ("wav2vec2", "hubert", "wavlm")),
    {"type": "ssl", "source": {**tiny.SSL, "model_type": "wavlm", "do_stable_layer_norm": False}},
    {"type": "beats", "source": tiny.BEATS},
]


@pytest.mark.parametrize("layers", [None, [0], [-1]])
@pytest.mark.parametrize("config", [*ENCODERS, {"type": "speaker", "source": None, **tiny.SPEAKER}])
def test_all_of_an_encoder_trains_that_gets_a_gradient(config, layers):
    """Fixed positions do not, nor a norm after the last block, of which only earlier blocks are used."""
    own = {} if config["type"] == "speaker" else {"layers": layers}
    fused = {"type": "fused", "encoders": {"own": {**config, **own}, "other": ENCODERS[0]}, "align": "nearest"}
    model = nn.ModuleDict({"encoder": build("encoders", fused)})
    trained = select_trainable(model, ["encoder.*"])
    features, _ = model["encoder"](torch.randn(2, 16000), torch.tensor([16000, 12000]))
    features.square().sum().backward()
    assert trained == [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not any("embed_positions" in name for name in trained) and any("own" in name for name in trained)


def test_a_pattern_of_fixed_parameters_alone_is_an_error():
    model = nn.ModuleDict({"encoder": build("encoders", ENCODERS[0])})
    with pytest.raises(ConfigError, match=r"'encoder.\*positions.\*' matches only parameters that are fixed"):
        select_trainable(model, ["encoder.*", "encoder.*positions.*"])


def test_a_quantised_weight_cannot_train(model):
    model["llm"]["base"].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"llm.base.weight is stored as torch.int8"):
        select_trainable(model, ["llm.*"])


def test_groups_have_the_first_matching_rate_and_vectors_no_decay(model):
    select_trainable(model, ["adapter.*"])
    groups = parameter_groups(
        model, {"adapter.projection.*": 1e-3, "adapter.*": 1e-4}, {**DEFAULTS, "weight_decay": 0.1}
    )
    rates = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert rates == {
        "adapter.projection.weight": (1e-3, 0.1),
        "adapter.projection.bias": (1e-3, 0.0),
        "adapter.time_block.weight": (1e-4, 0.1),
        "adapter.time_block.bias": (1e-4, 0.0),
    }
    assert sum(len(group["params"]) for group in groups) == 4


def test_every_trainable_parameter_needs_a_rate(model):
    select_trainable(model, ["adapter.*", "llm.lora_A.*"])
    with pytest.raises(ConfigError, match="no pattern matches llm.lora_A.weight"):
        parameter_groups(model, {"adapter.*": 1e-3}, DEFAULTS)
    with pytest.raises(ConfigError, match=r"'llm.base.\*' is the first match of no trainable parameter.*remove it"):
        parameter_groups(model, {"adapter.*": 1e-3, "llm.*": 1e-3, "llm.base.*": 1e-3}, DEFAULTS)


def test_the_table_contains_what_trains_at_which_rate(model):
    select_trainable(model, ["adapter.projection.*", "llm.lora_A.*"])
    groups = parameter_groups(model, {"adapter.*": 1e-3, "llm.*": 2e-4}, DEFAULTS)
    rows = {line.split("  ")[0]: line.split() for line in parameter_table(model, groups).splitlines()}
    assert rows["adapter.time_block"][1:5] == ["20", "0", "-", "float32"]
    assert rows["adapter.projection"][1:5] == ["40", "40", "0.001", "float32"]
    assert rows["llm LoRA"][2:6] == ["16", "16", "0.0002", "float32"]
    assert rows["total"][1:3] == ["148", "56"]


def test_a_group_may_have_its_own_decay_and_schedule(model):
    select_trainable(model, ["adapter.*", "llm.lora_A.*"])
    own = {"lr": "1e-3", "weight_decay": 0.2, "schedule": "constant", "warmup_steps": 0}
    groups = parameter_groups(model, {"adapter.*": own, "llm.*": 1e-2}, DEFAULTS)
    entries = [(g["names"][0], g["initial_lr"], g["weight_decay"], g["schedule"], g["warmup_steps"]) for g in groups]
    assert entries == [
        ("adapter.time_block.weight", 1e-3, 0.2, "constant", 0),
        ("adapter.time_block.bias", 1e-3, 0.0, "constant", 0),
        ("llm.lora_A.weight", 1e-2, 0.0, "linear", 10),
    ]
    set_learning_rates(groups, step=4, total_steps=100)
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 1e-3, 0.5e-2])


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ({"lr": 1e-3, "decay": 0}, "unknown entry 'decay'; its entries are lr, weight_decay, schedule, warmup_steps"),
        ({"weight_decay": 0.1}, "lr is missing"),
        ({"lr": 1e-3, "schedule": "step"}, "schedule is 'step'"),
        ({"lr": "fast"}, "could not convert string to float: 'fast'; write numbers"),
    ],
)
def test_wrong_entries_of_a_group_are_named(model, rate, message):
    select_trainable(model, ["adapter.*"])
    with pytest.raises(ConfigError, match=rf"learning_rates, 'adapter.\*': .*{message}"):
        parameter_groups(model, {"adapter.*": rate}, DEFAULTS)


@pytest.mark.parametrize("name", OPTIMIZERS[1:])
def test_optimisers_of_bitsandbytes_report_what_they_need(name, model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"{name} needs an NVIDIA GPU"):
        build_optimizer(name, [{"params": list(model.parameters())}], [0.9, 0.99])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        build_optimizer(name, [{"params": list(model.parameters())}], [0.9, 0.99])
