"""Loading a causal language model by name or folder, with its dtype, quantization and LoRA."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from audiolm_lite.backbones.fetch import resolve
from audiolm_lite.backbones.untrusted import check_published
from audiolm_lite.config.errors import ConfigError, describe, errors_about
from audiolm_lite.language.voxtral import NOT_QUANTIZED, language_model_of, load_tekken, load_voxtral_llm
from audiolm_lite.modeling.quantization import bitsandbytes_config

_ENTRIES = {"source": None, "tokenizer": None, "dtype": "float32", "quantization": None, "lora": None}
_DTYPES = ("float32", "bfloat16", "float16")
_LORA_REQUIRED = ("r", "alpha", "dropout", "target_modules")


def load_llm(config: dict[str, Any], on_meta: bool = False) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer.

    Parameters
    ----------
    config : dict
        ``source``: name on the Hugging Face hub or folder of a causal LM, or of a model of several modalities (Voxtral,
        Gemma 3), of which the language model is loaded, or a backbone that is known by name
        ("smollm2-135m-instruct"); ``tokenizer``: likewise, by default the source; ``dtype``: "float32" (default),
        "bfloat16" or "float16", independent of the dtype in the file; ``quantization``: None, "8bit" or "4bit" (NF4;
        bitsandbytes, on an NVIDIA GPU); ``lora``: None or ``{r, alpha, dropout, target_modules}`` (Hu et al. 2021,
        arXiv 2106.09685), with ``dora: true`` for DoRA, which learns magnitude and direction of each weight separately
        (Liu et al. 2024,
        arXiv 2402.09353), and ``rslora: true`` for rsLoRA, which scales by alpha / sqrt(r) (Kalajdzievski 2023).
    on_meta : bool
        Build the LLM on the meta device without reading its weights, for example because another process reads them.

    Returns
    -------
    llm : nn.Module
        The causal LM, or with a LoRA its `peft.PeftModel`, of which only the LoRA is trainable.
    tokenizer : PreTrainedTokenizerBase
        Its padding token is never used: only masks mark padding.

    Raises
    ------
    ConfigError
        An entry is unknown or missing or has an invalid value, or a required package is not installed.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import LlamaConfig, PreTrainedTokenizerFast
    >>> folder = str(getfixture("tmp_path"))
    >>> LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1}, "<unk>"))
    >>> _ = PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    >>> llm, tokenizer = load_llm({"source": folder, "dtype": "bfloat16"}, on_meta=True)
    >>> llm.device, llm.dtype, tokenizer("hello").input_ids
    (device(type='meta'), torch.bfloat16, [1])
    """
    _check_entries("llm", config, tuple(_ENTRIES), required=("source",))
    config = _ENTRIES | config
    _check_choice("dtype", config["dtype"], _DTYPES)
    dtype = getattr(torch, config["dtype"])
    source = resolve(config["source"])
    tokenizer_source = resolve(config["tokenizer"] or config["source"])
    # A model's own code is never run. trust_remote_code=None would ask on the terminal. Models that transformers has
    # itself, such as Phi, may still offer theirs.
    for named in dict.fromkeys((source, tokenizer_source)):
        check_published("llm", named, ignore_code=True)
    with errors_about(f"llm: source {config['source']!r} is not a model's folder, and cannot be loaded by this name"):
        published = AutoConfig.from_pretrained(source, trust_remote_code=False)
    voxtral = published.model_type == "voxtral"
    quantization = bitsandbytes_config("llm", config["quantization"], dtype, NOT_QUANTIZED if voxtral else None)
    if on_meta:
        with init_empty_weights(include_buffers=False):
            text = published.text_config if voxtral else published
            llm = language_model_of(AutoModelForCausalLM.from_config(text, dtype=dtype, trust_remote_code=False))
            llm = llm if config["lora"] is None else wrap_lora(llm, config["lora"])
        llm.tie_weights()
        return llm, _load_tokenizer(tokenizer_source)
    if voxtral:
        llm = load_voxtral_llm(source, published, dtype=dtype, quantization_config=quantization)
    else:
        with errors_about(f"llm: the weights of {config['source']!r} cannot be loaded"):
            llm = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                quantization_config=quantization,
                trust_remote_code=False,
                weights_only=True,
            )
            llm = language_model_of(llm)
    tokenizer = _load_tokenizer(tokenizer_source)
    if config["lora"] is not None:
        llm = wrap_lora(llm, config["lora"])
    return llm, tokenizer


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if cached_file(source, "tekken.json", **optional) and not cached_file(source, "tokenizer.json", **optional):
        with errors_about(f"llm: tekken.json of {source!r} is damaged"):
            return load_tekken(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the tokenizers' own library raises plain exceptions
        raise ConfigError(
            f"llm: the tokenizer of {source!r} cannot be loaded; code of a repository is never run: {describe(error)}"
        ) from error


def wrap_lora(llm: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Wrap a causal LM by PEFT with a new LoRA; `config` is the entry `lora` of `load_llm`.

    Raises
    ------
    ConfigError
        An entry is unknown or missing, or PEFT does not accept it.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    >>> lora = wrap_lora(llm, {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]})
    >>> [list(parameter.shape) for parameter in lora.parameters() if parameter.requires_grad]
    [[2, 8], [8, 2]]
    """
    from peft import LoraConfig, get_peft_model  # slow to import, and not always needed

    if not isinstance(config, Mapping):
        raise ConfigError(f"llm: lora is {config!r}; write {{{', '.join(_LORA_REQUIRED)}}}, or null for none")
    _check_entries("llm, lora", config, (*_LORA_REQUIRED, "dora", "rslora"), required=_LORA_REQUIRED)
    with errors_about(f"llm, lora {dict(config)}"):
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config["r"],
            lora_alpha=config["alpha"],
            lora_dropout=config["dropout"],
            target_modules=config["target_modules"],
            use_dora=config.get("dora", False),
            use_rslora=config.get("rslora", False),
        )
        return get_peft_model(llm, lora)


def _check_entries(where: str, config: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...]) -> None:
    for name in config:
        if name not in known:
            raise ConfigError(f"{where}: unknown entry {name!r}; it takes {', '.join(known)}.")
    for name in required:
        if name not in config:
            raise ConfigError(f"{where}: entry {name!r} is missing; it takes {', '.join(known)}.")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ConfigError(f"llm: {name} is {value!r}, it must be one of {', '.join(map(str, choices))}.")
