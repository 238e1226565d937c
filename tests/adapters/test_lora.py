"""A LoRA on all linear layers of an adapter: it changes nothing at first, and can be the only trainable part."""

import pytest
import torch

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.training.trainable import select_trainable

SIZES = {"feature_dim": 8, "num_layers": 1, "llm_dim": 6}
VOXTRAL = {"type": "mlp_pooling", "stride": 4, "pooling": "concat", "bias": False}
LORA = {"r": 2, "alpha": 4, "dropout": 0.0}


def test_every_linear_layer_gets_a_lora_that_changes_nothing_at_first():
    torch.manual_seed(0)
    plain = build_adapter(VOXTRAL, **SIZES)
    adapted = build_adapter(VOXTRAL | {"lora": LORA}, **SIZES)
    names = [name for name, _ in adapted.named_parameters()]
    assert sum("lora_A" in name for name in names) == 2 == sum("base_layer" in name for name in names)
    renamed = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.state_dict().items()}
    plain.load_state_dict({name: tensor for name, tensor in renamed.items() if "lora_" not in name})
    features, frames = torch.randn(2, 1, 12, 8), torch.tensor([12, 5])
    for actual, expected in zip(adapted(features, frames), plain(features, frames)):
        torch.testing.assert_close(actual, expected)
    assert adapted.num_tokens(9) == plain.num_tokens(9)

    model = torch.nn.ModuleDict({"adapter": adapted})
    trainable = select_trainable(model, ["adapter.*lora_*"])
    assert len(trainable) == 4 and all("lora_" in name for name in trainable)


def test_wrong_blocks_are_refused():
    for lora in ({"r": 2}, LORA | {"rank": 2}, 8):
        with pytest.raises(ConfigError, match="r, alpha, dropout"):
            build_adapter(VOXTRAL | {"lora": lora}, **SIZES)
