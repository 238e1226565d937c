"""Voxtral's language model as a causal LM, and its tokenizer."""

import base64
import json

import pytest
import torch
from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

from audiolm_lite.config.registry import build
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.language.voxtral import load_tekken
from tests.tiny import save_voxtral


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Voxtral and a tekken.json of single bytes, with the files of the published model."""
    folder = tmp_path_factory.mktemp("voxtral")
    save_voxtral(folder, mels=8, seconds=2, seed=0, vocab_size=300, max_position_embeddings=512)
    return folder


def test_the_language_model_computes_the_logits_of_voxtral(folder):
    llm, _ = load_llm({"source": str(folder)})
    voxtral = VoxtralForConditionalGeneration.from_pretrained(folder)
    ids = torch.randint(10, 300, (2, 9))
    torch.testing.assert_close(llm(input_ids=ids).logits, voxtral(input_ids=ids).logits, rtol=0, atol=1e-6)
    assert not any(parameter.is_meta for parameter in llm.parameters())
    assert not any(buffer.is_meta for buffer in llm.buffers())


def test_the_audio_tower_loads_as_a_whisper_encoder(folder):
    encoder = build("encoders", {"type": "whisper", "source": str(folder), "padding": "full", "layers": [-1]}).eval()
    voxtral = VoxtralForConditionalGeneration.from_pretrained(folder).eval()
    tower = getattr(voxtral, "model", voxtral).audio_tower
    waves, lengths = 0.1 * torch.randn(2, 30000), torch.tensor([30000, 9000])
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    clips = [wave[:length].numpy() for wave, length in zip(waves, lengths)]
    mel = extractor(clips, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        features, frames = encoder(waves, lengths)
        torch.testing.assert_close(features[:, 0], tower(mel).last_hidden_state, rtol=0, atol=2e-5)
    assert frames.tolist() == [100, 100]


def test_it_can_have_a_lora(folder):
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    llm, _ = load_llm({"source": str(folder), "lora": lora, "dtype": "bfloat16"})
    assert sum(parameter.requires_grad for parameter in llm.parameters()) == 8
    assert llm.get_base_model().dtype == torch.bfloat16


def test_the_tokenizer_has_its_special_tokens_and_encodes_korean(folder):
    _, tokenizer = load_llm({"source": str(folder)})
    template = PromptTemplate("{bos}[INST][BEGIN_AUDIO]{audio}[/INST]lang:ko[TRANSCRIBE]{answer}{eos}")
    ids, labels = template.encode({"id": "a", "target": "안녕 하세요"}, tokenizer, 2)
    begin = [tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "[INST]", "[BEGIN_AUDIO]")]
    assert ids[:3] == begin and ids[3:5] == [-1, -1] and ids[-1] == tokenizer.eos_token_id
    answer = [label for label in labels if label >= 0]
    assert tokenizer.decode(answer[:-1]) == "안녕 하세요"
    with pytest.raises(PromptError, match=r"becomes the special token \[INST\]"):
        template.encode({"id": "a", "target": "[INST]"}, tokenizer, 2)


def test_tekken_json_is_read_as_by_transformers_5(folder, tmp_path):
    """With longer pieces, some of which merge in two ways, unused entries and unnamed special tokens."""
    integration = pytest.importorskip(
        "transformers.integrations.mistral.tokenizer", reason="needs a later transformers"
    )
    tekken = json.loads((folder / "tekken.json").read_text())
    for number, piece in enumerate([b"ab", b"bc", b"abc", b" a", b"abcab", "안".encode(), b"unused"]):
        tekken["vocab"].append({"rank": 256 + number, "token_bytes": base64.b64encode(piece).decode()})
    tekken["special_tokens"].append({"rank": 8, "token_str": "<pad>", "is_control": True})
    tekken["config"] |= {"default_vocab_size": 256 + 6 + 12, "default_num_special_tokens": 12}
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    ours, theirs = load_tekken(str(tmp_path)), integration.convert_tekken_tokenizer(str(tmp_path / "tekken.json"))
    assert ours.get_vocab() == theirs.get_vocab()
    for text in ("abc", "abcabcab", "x abcab  bca", "안녕 하세요\n", "[INST]abc</s>"):
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text
