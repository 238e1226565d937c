"""Voxtral (Mistral AI 2025, arXiv 2507.13264) as parts: its language model as a causal LM of its own.

Its audio tower loads as a `whisper` encoder and its projector through `python -m audiolm_lite.convert voxtral`.
"""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import cached_file

# Quantised loading must leave these alone, by the names of transformers 4 and 5. Naming any drops the library's own
# default, which protects the output layer: so that is named too.
NOT_QUANTISED = [
    *("audio_tower", "model.audio_tower"),
    *("multi_modal_projector", "model.multi_modal_projector"),
    *("lm_head", "language_model.lm_head"),
]


def load_voxtral_llm(source: str, config: VoxtralConfig, **options: Any) -> nn.Module:
    """Load the language model of a Voxtral checkpoint.

    Parameters
    ----------
    source : str
        Name or folder of a `VoxtralForConditionalGeneration`.
    config : VoxtralConfig
        Its configuration.
    **options
        Of `from_pretrained`: dtype, quantization_config.

    Returns
    -------
    nn.Module
        A causal LM of transformers with the checkpoint's weights, quantised where asked for.
    """
    whole = VoxtralForConditionalGeneration.from_pretrained(source, use_safetensors=True, **options)
    if not hasattr(whole, "model"):  # transformers 4 keeps a causal LM inside
        return whole.language_model
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config)
    llm.model, llm.lm_head = whole.model.language_model, whole.lm_head
    llm.generation_config = whole.generation_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(whole, name):  # what peft and `to` look at
            setattr(llm, name, getattr(whole, name))
    return llm


def load_tekken(source: str) -> PreTrainedTokenizerBase:
    """Load Voxtral's tokenizer, which is published as `tekken.json` alone, as one that knows its special tokens.

    Most releases of transformers need the package mistral_common for that; the latest ones alone give the same.
    """
    content = json.loads(Path(cached_file(source, "tekken.json")).read_text(encoding="utf-8"))
    config = content["config"]
    special = [entry["token_str"] for entry in sorted(content["special_tokens"], key=lambda entry: entry["rank"])]
    special += [f"<SPECIAL_{number}>" for number in range(len(special), config["default_num_special_tokens"])]
    # What the file holds beyond the vocabulary's size is not in use.
    entries = content["vocab"][: config["default_vocab_size"] - len(special)]
    ranks = {base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(entries)}
    letters = bytes_to_unicode()
    spelt = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    merges = []
    for piece in ranks:  # the piece that comes first in the file is merged first
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        merges += [(spelt[x], spelt[y]) for x, y in sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    vocabulary = {token: number for number, token in enumerate([*special, *spelt.values()])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
