"""Fixtures every test may use: one thread, fixed seeds, and the folders that only some machines have."""

import builtins
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from speechbrain.utils.importutils import LazyModule

# hypothesis reads `__file__` of every loaded module, at which SpeechBrain's lazy ones would import optional packages.
LazyModule.__file__ = None

# One thread per worker: xdist runs one worker per core. Sums then have a fixed order, so pinned values do not change.
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
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """File that the code of a stranger writes. The test fails if it exists at the end, or if the user is asked."""

    def asked(*arguments: object) -> str:
        pytest.fail("the user was asked")

    monkeypatch.setattr(builtins, "input", asked)
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "code of a stranger ran"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Folder with a tiny Whisper (whisper/) and a tiny Llama (llama/, tied embeddings, word tokenizer)."""
    from tests.tiny import save_whisper, tiny_llm, word_tokenizer  # tests without models do not need transformers

    save_whisper(tmp_path / "whisper")
    words = "<unk> <s> </s> user answer : dog rain what transcribe describe audio .".split()
    word_tokenizer(words, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "llama")
    llm = tiny_llm(len(words), tie_word_embeddings=True, max_position_embeddings=256)
    llm.save_pretrained(tmp_path / "llama")
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
