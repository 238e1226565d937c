"""Tiny random models in place of those that YAML files of real size name: {tiny} in the tables of commands."""

import base64
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from audiolm_lite.encoders.beats import BEATsEncoder

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "num_feat_extract_layers": 3, "conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
LANGUAGE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with random models: whisper/, wavlm/, hubert/, beats.pt, llama/, voxtral/ and bert/."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1986)
    for make in (whisper, wavlm, hubert, llama, voxtral, bert):
        make(folder / make.__name__)
    beats(folder / "beats.pt")
    return folder


def whisper(folder: Path) -> None:
    """A small encoder with 80 mels and positions for 30 s, as published."""
    config = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80, vocab_size=60,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def wavlm(folder: Path) -> None:
    WavLMModel(WavLMConfig(**SPEECH)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)


def hubert(folder: Path) -> None:
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)


def beats(file: Path) -> None:
    """A checkpoint in the published format: with its configuration, and the table of positions for every block."""
    config = {
        "embed_dim": 8, "encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 2, "conv_pos": 4, "conv_pos_groups": 2,
    }  # fmt: skip
    state = BEATsEncoder(config).state_dict()
    table = state.pop("position_bias.weight")
    tables = {f"encoder.layers.{n}.self_attn.relative_attention_bias.weight": table for n in range(2)}
    torch.save({"cfg": config, "model": state | tables}, file)


def byte_tokenizer(special: list[str], **names: str) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per byte, for any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def bert(folder: Path) -> None:
    """A model that sentence-transformers loads as one that averages over tokens."""
    tokenizer = byte_tokenizer(["[PAD]", "[UNK]"], pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def llama(folder: Path) -> None:
    """A model with a chat template."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML}
    tokenizer = byte_tokenizer(special, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE)).save_pretrained(folder)


def voxtral(folder: Path) -> None:
    """A model whose tokenizer is a tekken.json of bytes, as published."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[AUDIO]", "[TRANSCRIBE]"]
    audio = {
        "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_mel_bins": 128, "vocab_size": 100,
    }  # fmt: skip
    text = {"model_type": "llama", "vocab_size": 256 + len(special), "head_dim": 8, **LANGUAGE}
    config = VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=special.index("[AUDIO]"))
    VoxtralForConditionalGeneration(config).save_pretrained(folder)
    bytes_ = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    settings = {
        "pattern": r"[^\s]+|\s+", "num_vocab_tokens": 256, "default_vocab_size": 256 + len(special),
        "default_num_special_tokens": len(special), "version": "v11",
    }  # fmt: skip
    controls = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(special)]
    (folder / "tekken.json").write_text(json.dumps({"config": settings, "vocab": bytes_, "special_tokens": controls}))
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
