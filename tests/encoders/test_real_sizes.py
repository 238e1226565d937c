"""Every YAML block of hparams/encoders with its published sizes, on the meta device, without memory or weights."""

from pathlib import Path

import pytest
import torch
import whisper as openai_whisper
from hyperpyyaml import load_hyperpyyaml

from audiolm_lite.config.registry import build

FOLDER = Path(__file__).parents[2] / "hparams" / "encoders"


def whisper(mels, dim=1280, layers=32, heads=20):
    sizes = {"d_model": dim, "encoder_layers": layers, "encoder_attention_heads": heads, "encoder_ffn_dim": 4 * dim}
    return {**sizes, "num_mel_bins": mels, "decoder_layers": 1}


def ssl(kind, dim, layers, **entries):
    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": 16, "intermediate_size": 4 * dim}
    return {"model_type": kind, **sizes, "feat_extract_norm": "layer", "do_stable_layer_norm": True, **entries}


# Sizes of the model that each name in the YAML files refers to.
PUBLISHED = {
    "openai/whisper-large-v2": whisper(80),
    "openai/whisper-large-v3": whisper(128),
    "openai/whisper-large-v3-turbo": whisper(128),
    "whisper-tiny.en": whisper(80, 384, 4, 6),
    "mistralai/Voxtral-Mini-3B-2507": whisper(128),
    "microsoft/wavlm-large": ssl("wavlm", 1024, 24, conv_bias=False, num_buckets=320, max_bucket_distance=800),
    "facebook/hubert-xlarge-ls960-ft": ssl("hubert", 1280, 48, conv_bias=True),
    "facebook/wav2vec2-large-960h-lv60-self": ssl("wav2vec2", 1024, 24, conv_bias=True),
    "speechbrain/spkrec-ecapa-voxceleb": None,
    "PLACEHOLDER": {},  # the published BEATs, which has the default sizes
}

# Parameters in millions, L, D, frames of 30 s of audio.
EXPECTED = {
    "whisper_large_v3": (637.0, 32, 1280, 25),  # of 10 s
    "whisper_large_v3_exact": (637.0, 1, 1280, 1500),
    "whisper_large_v3_turbo": (637.0, 1, 1280, 1500),
    "whisper_tiny_en": (8.2, 4, 384, 750),
    "voxtral_mini_3b": (637.0, 1, 1280, 1500),
    "wavlm_large": (315.5, 1, 1024, 1499),
    "hubert_xlarge": (962.5, 1, 1280, 1499),
    "wav2vec2_large": (315.4, 1, 1024, 1499),
    "beats": (90.3, 1, 768, 1496),
    "ecapa": (20.8, 1, 192, 75),
    "salmonn": (727.1, 1, 2048, 1500),
    "salmonn_lite": (727.3, 1, 2048, 1500),
    "speech_ssl_speaker": (973.2, 1, 1280 + 3 * 1024 + 192, 1500),
}


def with_geometry(block):
    """The block with the sizes of its source in place of the source's name."""
    if "encoders" in block:
        return {**block, "encoders": {name: with_geometry(inner) for name, inner in block["encoders"].items()}}
    return {**block, "source": PUBLISHED[block["source"]]} | (
        {"decoder_language": None} if "decoder_language" in block else {}
    )


def test_every_block_is_tested():
    # miniasqa.yaml names a model that is stored with its recipe; the recipe's tests load it
    assert {file.stem for file in FOLDER.glob("*.yaml")} - {"miniasqa"} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_build_at_published_geometry(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    block = with_geometry(load_hyperpyyaml(text.replace("!PLACEHOLDER", "PLACEHOLDER")))
    with torch.device("meta"):
        encoder = build("encoders", block)
    millions, layers, dim, frames = EXPECTED[name]
    seconds = 10 if name == "whisper_large_v3" else 30
    assert (encoder.num_layers, encoder.feature_dim) == (layers, dim)
    assert encoder.num_frames(seconds * 16000) == frames
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("size", "dims"),
    [
        ("tiny", (80, 384, 4, 6)),
        ("base", (80, 512, 6, 8)),
        ("small", (80, 768, 12, 12)),
        ("medium", (80, 1024, 24, 16)),
    ],
)
def test_smaller_whispers_build(size, dims):
    assert size in openai_whisper.available_models()
    with torch.device("meta"):
        encoder = build("encoders", {"type": "whisper", "source": whisper(*dims)})
    assert (encoder.num_layers, encoder.feature_dim, encoder.num_frames(480000)) == (dims[2], dims[1], 1500)
