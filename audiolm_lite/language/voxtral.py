"""The language model and the tokenizer of Voxtral (Mistral AI 2025, arXiv 2507.13264).

Its audio tower is loaded as a `whisper` encoder, and its projector by `audiolm-lite convert voxtral`.
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

# Limits of a tekken.json that is read: special tokens, and letters of a token in base64. Voxtral's has 1000 and 172.
MOST_TOKENS, LONGEST = 100_000, 2000
# Modules that are not quantized, with their names in transformers 4 and 5. The list replaces the default of
# transformers, which is the output layer, so it includes the output layer.
NOT_QUANTIZED = [
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
        Arguments of `from_pretrained`: dtype, quantization_config.

    Returns
    -------
    nn.Module
        Causal LM of transformers with the checkpoint's weights, quantized if `quantization_config` is given.

    Examples
    --------
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> config = VoxtralConfig(audio_config=sizes, text_config=sizes | {"vocab_size": 16}, audio_token_id=0)
    >>> VoxtralForConditionalGeneration(config).save_pretrained(getfixture("tmp_path"))
    >>> llm = load_voxtral_llm(str(getfixture("tmp_path")), config)
    >>> type(llm).__name__, llm.lm_head
    ('LlamaForCausalLM', Linear(in_features=8, out_features=16, bias=False))
    """
    voxtral = VoxtralForConditionalGeneration.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, **options
    )
    if not hasattr(voxtral, "model"):  # in transformers 4 its language model is a causal LM
        return voxtral.language_model
    return language_model_of(voxtral)


def language_model_of(composite: nn.Module) -> nn.Module:
    """Take the causal LM out of a model of several modalities, with its weights; other models are returned unchanged.

    Parameters
    ----------
    composite : nn.Module
        A model of transformers with an output layer, such as a Gemma 3 with its vision tower.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    >>> language_model_of(llm) is llm
    True
    """
    whole: Any = composite
    text = getattr(getattr(whole, "model", None), "language_model", None)
    if text is None:
        return composite
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(whole.config.get_text_config(), trust_remote_code=False)
    llm.model, llm.lm_head = text, whole.lm_head
    llm.generation_config = whole.generation_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(whole, name):  # read by peft and by `to`
            setattr(llm, name, getattr(whole, name))
    return llm


def load_tekken(source: str) -> PreTrainedTokenizerBase:
    """Load Voxtral's tokenizer, which is published only as a file `tekken.json`.

    The tokenizers of transformers cannot be used. Without the package mistral_common, version 4.57 reads the file with
    other token ids and without special tokens; version 5 reads it correctly, but without the names of the tokens that
    begin and end a text.

    Parameters
    ----------
    source : str
        Name on the Hugging Face hub, or folder, with the file.

    Returns
    -------
    PreTrainedTokenizerBase
        Tokenizer with the special tokens of the file, among them `bos_token`, `eos_token` and `unk_token`.

    Examples
    --------
    >>> special = [{"rank": rank, "token_str": token} for rank, token in enumerate(["<unk>", "<s>", "</s>"])]
    >>> vocab = [{"token_bytes": base64.b64encode(bytes([byte])).decode()} for byte in range(256)]
    >>> config = {"pattern": "[a-z]+", "default_vocab_size": 259, "default_num_special_tokens": 3}
    >>> folder, content = getfixture("tmp_path"), {"config": config, "special_tokens": special, "vocab": vocab}
    >>> _ = (folder / "tekken.json").write_text(json.dumps(content))
    >>> load_tekken(str(folder))("ab</s>").input_ids
    [100, 101, 2]
    """
    content = json.loads(Path(cached_file(source, "tekken.json")).read_text(encoding="utf-8"))
    config = content["config"]
    special = [entry["token_str"] for entry in sorted(content["special_tokens"], key=lambda entry: entry["rank"])]
    if config["default_num_special_tokens"] > MOST_TOKENS or any(
        len(e["token_bytes"]) > LONGEST for e in content["vocab"]
    ):
        raise ValueError(
            f"tekken.json: more than {MOST_TOKENS} special tokens, or a token of more than {LONGEST} letters"
        )
    special += [f"<SPECIAL_{number}>" for number in range(len(special), config["default_num_special_tokens"])]
    # Entries beyond the size of the vocabulary are unused.
    entries = content["vocab"][: config["default_vocab_size"] - len(special)]
    ranks = {base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(entries)}
    letters = bytes_to_unicode()
    text_of = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    merges = []
    for piece in ranks:  # pieces are merged in the order of the file
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(text_of[first], text_of[second]) for first, second in known]
    vocabulary = {token: number for number, token in enumerate([*special, *text_of.values()])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
