"""Adapters with their published sizes, on the meta device: parameter counts and audio tokens per second."""

from pathlib import Path

import pytest
import torch
import yaml

from audiolm_lite.config.registry import build, component_types
from audiolm_lite.training.trainable import audio_token_rate

BLOCKS = Path(__file__).parents[2] / "hparams" / "adapters"


def adapter(block, feature_dim, llm_dim, num_layers=1, **changes):
    config = {**yaml.safe_load((BLOCKS / f"{block}.yaml").read_text()), **changes}
    with torch.device("meta"):
        return build("adapters", config, feature_dim=feature_dim, num_layers=num_layers, llm_dim=llm_dim)


def millions(module):
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


def lora_parameters(layers, rank, *shapes):
    """Parameters of a LoRA on linear layers of these (in, out) shapes in each of `layers` layers."""
    return layers * sum(rank * (size_in + size_out) for size_in, size_out in shapes)


def test_every_block_builds():
    blocks = {path.stem: yaml.safe_load(path.read_text()) for path in BLOCKS.glob("*.yaml")}
    assert {config["type"] for config in blocks.values()} == set(component_types("adapters"))
    for name, config in blocks.items():
        adapter(name, 2048, 64, num_layers=4 if config["type"] == "tltr" else 1)


def test_ltu_as():
    tltr = adapter("tltr", 1280, 4096, num_layers=32)
    assert millions(tltr.time_block) + millions(tltr.layer_block) == pytest.approx(39.35, abs=0.01)
    assert millions(tltr.projection) == 5.25
    lora = lora_parameters(32, 8, (4096, 4096), (4096, 1024))  # q and v of Llama-3-8B
    total = sum(p.numel() for p in tltr.parameters()) + lora
    assert round(total / 1e6, 1) == 48.0
    assert audio_token_rate(tltr, frame_seconds=0.4) == 2.5


@pytest.mark.parametrize(("feature_dim", "count"), [(1024, 18.88), (1280, 21.50)])  # WavLM-large, HuBERT-xlarge
def test_slam_asr(feature_dim, count):
    linear = adapter("linear_stack", feature_dim, 4096)
    assert millions(linear) == count
    assert audio_token_rate(linear, frame_seconds=0.02) == 10


# Trainable: both LayerNorms, the query, the Q-Former, the projection and the LLM's LoRA (r 8 on q and v).
@pytest.mark.parametrize(
    ("llm", "llm_dim", "lora", "count"),
    [
        ("Vicuna-13B", 5120, lora_parameters(40, 8, (5120, 5120), (5120, 5120)), 33.33),
        ("Vicuna-7B", 4096, lora_parameters(32, 8, (4096, 4096), (4096, 4096)), 30.19),
        ("Llama-3.2-3B", 3072, lora_parameters(28, 8, (3072, 3072), (3072, 1024)), 27.50),
    ],
)
def test_salmonn(llm, llm_dim, lora, count):
    qformer = adapter("window_qformer", 1280 + 768, llm_dim)
    assert round((sum(p.numel() for p in qformer.parameters()) + lora) / 1e6, 2) == count
    published = adapter("window_qformer", 1280 + 768, llm_dim, published_behaviour=True)
    assert (published.num_tokens(1500), qformer.num_tokens(1500)) == (88, 89)


def test_salm_and_canary_qwen():
    conformer = adapter("conformer", 1024, 2048)
    assert millions(conformer.blocks) == pytest.approx(50.5, abs=0.5)
    assert audio_token_rate(conformer, frame_seconds=0.08) == 12.5
    identity = adapter("identity", 1024, 2048)
    assert millions(identity) == 2.10
    # Subsampling 10-ms frames by 8 gives the usual 80 ms per token.
    assert audio_token_rate(adapter("conformer", 80, 2048, factor=8), frame_seconds=0.01) == 12.5


def test_voxtral():
    projector = adapter("mlp_concat", 1280, 3072)
    assert millions(projector) == round((5120 * 3072 + 3072 * 3072) / 1e6, 2)
    assert projector.num_tokens(1500) == 375 and audio_token_rate(projector, frame_seconds=0.02) == 12.5


def test_the_number_of_qformer_tokens_does_not_depend_on_the_length():
    assert audio_token_rate(adapter("qformer", 1024, 4096), frame_seconds=0.02) == 6.4
