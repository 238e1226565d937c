"""Fixtures every test may use: one thread, fixed seeds, and the folders that only some machines have."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from speechbrain.utils.importutils import LazyModule

# hypothesis reads `__file__` of every loaded module, at which SpeechBrain's lazy ones would import optional packages.
LazyModule.__file__ = None

# One thread per worker: xdist runs a worker a core, and sums keep one order, so pinned values stay put.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(1986)
    np.random.seed(1986)
    torch.manual_seed(1986)


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set ({what})")
    folder = Path(value)
    # A set variable that points nowhere is a mistake to see, not a reason to skip.
    assert folder.is_dir(), f"{variable}={value} is not a folder"
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with selections of real corpora."""
    return _folder("AUDIOLM_LITE_REAL_DATA", "real corpora")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with reference tensors of the published systems."""
    return _folder("AUDIOLM_LITE_PARITY_DIR", "reference tensors of published systems")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Folder with a tiny Whisper (whisper/) and a tiny Llama (llama/, tied embeddings, word tokenizer)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    whisper = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=20,
        max_source_positions=100, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperModel(whisper).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(tmp_path / "whisper")
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "user",
        "answer",
        ":",
        "dog",
        "rain",
        "what",
        "transcribe",
        "describe",
        "audio",
        ".",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "llama")
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(words),
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    return tmp_path


@pytest.fixture
def make_experiment(sources: Path) -> Callable[..., dict]:
    """Hyperparameters of a model on the tiny sources, with or without a LoRA."""

    def make(lora: bool) -> dict:
        settings = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
        return {
            "encoder": {"type": "whisper", "source": str(sources / "whisper"), "pool": 2},
            "adapter": {"type": "tltr", "layer_heads": 2},
            "llm": {"source": str(sources / "llama"), "lora": settings if lora else None},
            "template": "{bos}user : {audio} {instruction} answer : {answer}{eos}",
        }

    return make


@pytest.fixture
def make_model() -> Callable[..., torch.nn.Module]:
    """The model of such hyperparameters as training leaves it: adapter and LoRA away from their start, trainable."""
    from audiolm_lite.adapters.build import build_adapter
    from audiolm_lite.config.registry import build
    from audiolm_lite.language.llm import load_llm
    from audiolm_lite.modeling.audio_language_model import AudioLanguageModel

    def make(experiment: dict, with_encoder: bool = True) -> AudioLanguageModel:
        encoder = build("encoders", experiment["encoder"])
        llm, _ = load_llm(experiment["llm"])
        sizes = {"feature_dim": encoder.feature_dim, "num_layers": encoder.num_layers, "llm_dim": 16}
        adapter = build_adapter(experiment["adapter"], **sizes)
        model = AudioLanguageModel(adapter, llm, encoder if with_encoder else None).requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.startswith("adapter.") or "lora_" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape)
                parameter.requires_grad_(True)
        return model.eval()

    return make
