"""A LoRA on an adapter's linear maps: found by itself, nothing changes at its start, and it alone trains if named."""

import pytest
import torch

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.training.trainable import select_trainable

SIZES = {"feature_dim": 8, "num_layers": 1, "llm_dim": 6}
VOXTRAL = {"type": "mlp_pooling", "stride": 4, "pooling": "concat", "bias": False}
LORA = {"r": 2, "alpha": 4, "dropout": 0.0}


def test_every_linear_map_gets_one_and_the_start_is_the_plain_adapter():
    torch.manual_seed(0)
    plain = build_adapter(VOXTRAL, **SIZES)
    adapted = build_adapter(VOXTRAL | {"lora": LORA}, **SIZES)
    names = [name for name, _ in adapted.named_parameters()]
    assert sum("lora_A" in name for name in names) == 2 == sum("base_layer" in name for name in names)
    renamed = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.state_dict().items()}
    plain.load_state_dict({name: tensor for name, tensor in renamed.items() if "lora_" not in name})
    features, frames = torch.randn(2, 1, 12, 8), torch.tensor([12, 5])
    for ours, theirs in zip(adapted(features, frames), plain(features, frames)):
        torch.testing.assert_close(ours, theirs)
    assert adapted.num_tokens(9) == plain.num_tokens(9)

    model = torch.nn.ModuleDict({"adapter": adapted})
    trainable = select_trainable(model, ["adapter.*lora_*"])
    assert len(trainable) == 4 and all("lora_" in name for name in trainable)


def test_wrong_blocks_are_refused():
    for lora in ({"r": 2}, LORA | {"rank": 2}, 8):
        with pytest.raises(ConfigError, match="r, alpha, dropout"):
            build_adapter(VOXTRAL | {"lora": lora}, **SIZES)
