"""The model of an experiment file in shapes alone: from `config.json` and YAML, no weight is read or made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build, map_sources
from audiolm_lite.language.llm import load_llm
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.quantization import check_quantization
from audiolm_lite.modeling.transformer_blocks import checkpoint_activations
from audiolm_lite.plan.processes import exchanged_bytes, share_of
from audiolm_lite.training.build import open_store
from audiolm_lite.training.trainable import select_trainable

# Bytes a weight takes as bitsandbytes stores it. 8 bits: a byte, and a float32 scale for each row, which is little.
# NF4 with double quantisation: half a byte, a byte for 64 weights, a float32 for 256 of these.
QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


def outline_model(hparams: Mapping) -> tuple[AudioLanguageModel, PreTrainedTokenizerBase, Any]:
    """Build the model on the meta device, with what trains and what is recomputed as the experiment says.

    Returns
    -------
    model : AudioLanguageModel
        Not quantised: `weight_bytes` tells what its weights will take.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    source : FeatureStore or nn.Module
        What gives features in training; the encoder on the meta device, too, where the store is not there yet.

    Raises
    ------
    ConfigError
        A block is wrong, or an encoder's shapes are not in a `config.json`.
    """
    for name in ("llm", "encoder"):
        check_quantization(name, hparams[name].get("quantization"))
    llm, tokenizer = load_llm({**hparams["llm"], "quantization": None}, on_meta=True)
    folder = hparams["feature_folder"]
    stored = not hparams["train_encoder"] and folder is not None and (Path(folder) / "store.json").is_file()
    source = open_store(hparams) if stored else outline_encoder(hparams["encoder"])
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


def outline_encoder(block: Mapping) -> nn.Module:
    """Build an encoder on the meta device from its block, reading only the JSON files of the models it names."""

    def configuration(source: str, where: str) -> Any:
        if source.endswith(".pt"):
            raise ConfigError(
                f"{where}: the shapes of {source} are inside it, and planning reads no weights: extract the features "
                "first, so that the store tells them, or name a model with a config.json"
            )
        if "/" not in source and not Path(source).is_dir():  # openai-whisper's names
            source = f"openai/whisper-{source}"
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict()
        if config["model_type"] == "whisper":
            config["preprocessor"] = transformers.WhisperFeatureExtractor.from_pretrained(source).to_dict()
        return config

    with torch.device("meta"):
        return build("encoders", _unquantised(map_sources(block, configuration, "encoder")))


def _unquantised(block: Any) -> Any:
    if not isinstance(block, Mapping):
        return block
    return {name: _unquantised(value) for name, value in block.items() if name != "quantization"}


def weight_bytes(model: AudioLanguageModel, hparams: Mapping) -> dict[str, int]:
    """Bytes of the weights by part that a process keeps: encoder, adapter, LLM and its LoRA."""
    quantised = _quantised(model, hparams)
    share = share_of(hparams)
    sizes: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        each = quantised[name] if name in quantised else share * parameter.element_size()
        row = "LoRA" if "lora_" in name else {"llm": "LLM"}.get(part, part)
        sizes[row] = sizes.get(row, 0) + parameter.numel() * each
    return {row: round(size) for row, size in sizes.items()}


def exchange_bytes(model: AudioLanguageModel, hparams: Mapping) -> int:
    """Bytes of what processes gather from each other or reduce; quantised weights stay whole in each."""
    quantised = _quantised(model, hparams)
    return exchanged_bytes(model, hparams, lambda name, p: 0 if name in quantised else p.nbytes)


def _quantised(model: AudioLanguageModel, hparams: Mapping) -> dict[str, float]:
    """Bytes of each weight of the parameters that are quantised, by name."""
    bits = {"llm": hparams["llm"].get("quantization"), "encoder": hparams["encoder"].get("quantization")}
    return {
        f"{name}.weight": QUANTISED[bits[name.split(".")[0]]]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and bits.get(name.split(".")[0])
        and "lora_" not in name
        and module is not model.llm.get_output_embeddings()
    }


def optimizer_bytes(model: AudioLanguageModel, optimizer: str) -> int:
    """Bytes of AdamW's two moments: in the parameter's own format, or in 8 bits with a float32 for 256 of them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not optimizer.endswith("8bit"):
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in trained)
    # bitsandbytes leaves tensors of less than 4096 entries in 32 bits
    return round(sum(2 * p.numel() * (1 + 4 / 256 if p.numel() >= 4096 else 4) for p in trained))
