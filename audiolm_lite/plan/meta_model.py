"""The model of an experiment file on the meta device: shapes from YAML and `config.json`, no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.backbones.fetch import resolve
from audiolm_lite.backbones.untrusted import check_published
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build, map_sources
from audiolm_lite.language.llm import load_llm
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.quantization import check_quantization
from audiolm_lite.modeling.transformer_blocks import checkpoint_activations
from audiolm_lite.plan.process_memory import communication_buffers, sharded_fraction
from audiolm_lite.training.build import open_store
from audiolm_lite.training.trainable import select_trainable

# Bytes per weight as bitsandbytes stores it. 8 bits: one byte, and a float32 scale per row, which is negligible.
# NF4 with double quantisation: half a byte, one byte per 64 weights, and a float32 per 256 of these bytes.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


def build_meta_model(hparams: Mapping) -> tuple[AudioLanguageModel, PreTrainedTokenizerBase, Any]:
    """Build the model on the meta device, with the trainable parameters and recomputed blocks of the experiment.

    Returns
    -------
    model : AudioLanguageModel
        Not quantised; `weight_bytes` computes the size of quantised weights.
    tokenizer : PreTrainedTokenizerBase
    source : FeatureStore or nn.Module
        Source of the features in training. Before the store exists: the encoder, on the meta device.

    Raises
    ------
    ConfigError
        A block is invalid, or an encoder's shapes are not in a `config.json`.
    """
    for name in ("llm", "encoder"):
        check_quantization(name, hparams[name].get("quantization"))
    llm, tokenizer = load_llm({**hparams["llm"], "quantization": None}, on_meta=True)
    folder = hparams["feature_folder"]
    stored = not hparams["train_encoder"] and folder is not None and (Path(folder) / "store.json").is_file()
    source = open_store(hparams) if stored else build_meta_encoder(hparams["encoder"])
    with torch.device("meta"):
        adapter = build_adapter(
            hparams["adapter"],
            feature_dim=source.feature_dim,
            num_layers=source.num_layers,
            llm_dim=llm.get_input_embeddings().embedding_dim,
        )
    encoder = source if hparams["train_encoder"] else None
    model = AudioLanguageModel(adapter, llm, encoder, hparams["loss_chunk"])
    select_trainable(model, hparams["trainable"])
    if hparams["gradient_checkpointing"]:
        for part in filter(None, (encoder, llm)):
            checkpoint_activations(part, hparams["gradient_checkpointing"])
    return model.train(), tokenizer, source


def build_meta_encoder(block: Mapping) -> nn.Module:
    """Build an encoder on the meta device from its block, reading only the JSON files of its pretrained models.

    Examples
    --------
    >>> encoder = build_meta_encoder({"type": "whisper", "source": {"d_model": 8, "encoder_attention_heads": 2}})
    >>> encoder.feature_dim, encoder.num_layers, next(encoder.parameters()).is_meta
    (8, 4, True)
    """

    def configuration(source: str, where: str) -> Any:
        if source.endswith(".pt"):
            raise ConfigError(
                f"{where}: {source} stores its shapes with its weights, which the planner does not read; extract the "
                "features first, or use a model with a config.json"
            )
        source = resolve(source)
        if "/" not in source and not Path(source).is_dir():  # openai-whisper's names
            source = f"openai/whisper-{source}"
        check_published(where, source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict()
        if config["model_type"] == "whisper":
            config["preprocessor"] = transformers.WhisperFeatureExtractor.from_pretrained(source).to_dict()
        return config

    with torch.device("meta"):
        return build("encoders", _plain(map_sources(block, configuration, "encoder")))


def _plain(block: Any) -> Any:
    """Block without quantization, and without the decoder for transcripts, which no training step uses."""
    if not isinstance(block, Mapping):
        return block
    without = ("quantization", "decoder_language", "decoder_text")
    return {name: _plain(value) for name, value in block.items() if name not in without}


def weight_bytes(model: AudioLanguageModel, hparams: Mapping) -> dict[str, int]:
    """Bytes of the weights that a process keeps, by part: encoder, adapter, LLM and LoRA.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    >>> model = AudioLanguageModel(nn.Linear(8, 8), llm)
    >>> weight_bytes(model, {"llm": {}, "encoder": {}})
    {'adapter': 288, 'LLM': 4768}
    >>> weight_bytes(model, {"llm": {"quantization": "8bit"}, "encoder": {}})
    {'adapter': 288, 'LLM': 2080}
    """
    quantised = _quantised_weights(model, hparams)
    fraction = sharded_fraction(hparams)
    sizes: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        element_size = quantised[name] if name in quantised else fraction * parameter.element_size()
        label = "LoRA" if "lora_" in name else {"llm": "LLM"}.get(part, part)
        sizes[label] = sizes.get(label, 0) + parameter.numel() * element_size
    return {label: round(size) for label, size in sizes.items()}


def communication_bytes(model: AudioLanguageModel, hparams: Mapping) -> int:
    """Bytes of a process's communication buffers. Quantised weights are not sharded, so they need none.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    >>> model = AudioLanguageModel(nn.Linear(8, 8), llm)
    >>> processes = {"processes": 2, "parallel": "ddp", "cpu_offload": False}
    >>> communication_bytes(model, {"llm": {}, "encoder": {}, **processes})
    5056
    """
    quantised = _quantised_weights(model, hparams)
    return communication_buffers(model, hparams, lambda name, p: 0 if name in quantised else p.nbytes)


def _quantised_weights(model: AudioLanguageModel, hparams: Mapping) -> dict[str, float]:
    """Bytes per element of each parameter that is quantised, by name."""
    bits = {"llm": hparams["llm"].get("quantization"), "encoder": hparams["encoder"].get("quantization")}
    return {
        f"{name}.weight": QUANTISED_BYTES[bits[name.split(".")[0]]]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and bits.get(name.split(".")[0])
        and "lora_" not in name
        and module is not model.llm.get_output_embeddings()
    }


def optimizer_bytes(model: AudioLanguageModel, optimizer: str) -> int:
    """Bytes of AdamW's two moments: in the parameter's dtype, or in 8 bits with a float32 per 256 elements.

    Examples
    --------
    >>> model = nn.Linear(100, 100, bias=False)
    >>> optimizer_bytes(model, "adamw"), optimizer_bytes(model, "adamw_8bit")
    (80000, 20312)
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not optimizer.endswith("8bit"):
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in trained)
    # bitsandbytes keeps the moments of tensors with less than 4096 elements in 32 bits
    return round(sum(2 * p.numel() * (1 + 4 / 256 if p.numel() >= 4096 else 4) for p in trained))
