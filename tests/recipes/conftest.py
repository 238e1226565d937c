"""Tiny random models in place of those that YAML files of real size name: {tiny} in the tables of commands."""

from pathlib import Path

import pytest
import torch

from tests.tiny import (
    VOXTRAL_SPECIAL,
    byte_tokenizer,
    save_beats,
    save_ssl,
    save_voxtral,
    save_whisper,
    tiny_bert,
    tiny_llm,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As in published LLMs: grouped-query attention, long prompts, and the default initialisation.
LANGUAGE = {"num_key_value_heads": 1, "max_position_embeddings": 4096, "initializer_range": 0.02}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with random models: whisper/, wavlm/, hubert/, beats.pt, llama/, voxtral/ and bert/."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1986)
    save_whisper(folder / "whisper", mels=80, seconds=30)
    save_ssl(folder / "wavlm", "wavlm")
    save_ssl(folder / "hubert", "hubert")
    save_llama(folder / "llama")
    save_voxtral(folder / "voxtral", mels=128, seconds=30, **LANGUAGE)
    save_bert(folder / "bert")
    save_beats(folder / "beats.pt")
    return folder


def save_bert(folder: Path) -> None:
    """Write a model that sentence-transformers loads as one that averages over tokens."""
    tokenizer = byte_tokenizer(("[PAD]", "[UNK]"), pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    tiny_bert(len(tokenizer)).save_pretrained(folder)


def save_llama(folder: Path) -> None:
    """Write a model with a chat template and the special tokens of templates in recipes (Llama 3, Voxtral)."""
    special = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    special += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *VOXTRAL_SPECIAL[3:])
    tokenizer = byte_tokenizer(special, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[3:])})
    tokenizer.save_pretrained(folder)
    tiny_llm(len(tokenizer), **LANGUAGE).save_pretrained(folder)
