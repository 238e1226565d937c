"""Voxtral (Mistral AI 2025, arXiv 2507.13264) as parts: its language model as a causal LM of its own.

Its audio tower loads as a `whisper` encoder and its projector through `python -m audiolm_lite.convert voxtral`.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, VoxtralConfig, VoxtralForConditionalGeneration
from transformers.integrations.mistral import convert_tekken_tokenizer
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
    """Load Voxtral's tokenizer, which is published as `tekken.json` alone, as one that knows its special tokens."""
    return convert_tekken_tokenizer(cached_file(source, "tekken.json"))
