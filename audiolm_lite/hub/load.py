"""Loading the folder of a finished model, or starting another model from it (see `hub.folder` for its format)."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.registry import build, map_sources
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.hub.folder import (
    CONFIG,
    ModelFolderError,
    find_source,
    local_folder,
    lora_is_trained,
    read_config,
    read_tensors,
    stored_name,
)
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> ModelBundle:
    """Load a model's folder, or a repository of the Hugging Face hub that holds one.

    Raises
    ------
    ModelFolderError
        No model there, another format, a tensor too many or too few, a LoRA that does nothing.
    ConfigError
        A configuration that this version of the library does not know.
    """
    folder = local_folder(folder)
    config = read_config(folder)
    encoder = build("encoders", _located(config, "encoder", folder))
    llm, tokenizer = load_language_model(folder, config)
    adapter = build_adapter(
        config["adapter"],
        feature_dim=encoder.feature_dim,
        num_layers=encoder.num_layers,
        llm_dim=llm.get_input_embeddings().embedding_dim,
    )
    model = AudioLanguageModel(adapter, llm, encoder)
    files = config["tensors"]
    for part in ("adapter", "encoder"):
        if f"{part}.safetensors" in files or part == "adapter":
            _load_part(model, part, folder / f"{part}.safetensors", files.get(f"{part}.safetensors"))
    model.requires_grad_(False).eval()
    for part in (model.adapter, model.encoder, *([] if config["llm"].get("quantization") else [llm])):
        part.to(device)  # a quantised LLM is on its device already
    return ModelBundle(
        model,
        tokenizer,
        PromptTemplate(config["template"]),
        config["generation"],
        config["instructions"],
        _identity(folder, files),
    )


def load_trained(model: AudioLanguageModel, folder: str | Path) -> list[str]:
    """Start a model from what a model's folder holds: the adapter, the LoRA and other trained tensors.

    So a published checkpoint, converted, or a model shared by somebody else is tuned further. A LoRA that `model` has
    and the folder lacks, on the LLM or on the adapter, stays at its start.

    Returns
    -------
    list of str
        Names of the model's tensors that were loaded.

    Raises
    ------
    ModelFolderError
        As `load_model`, or the folder's adapter is built otherwise, or its LoRA has no place in this LLM.
    """
    folder = local_folder(folder)
    config = read_config(folder)
    files = config["tensors"]
    names = _load_part(model, "adapter", folder / "adapter.safetensors", files.get("adapter.safetensors"))
    for part in ("llm", "encoder"):
        if f"{part}.safetensors" in files and getattr(model, part) is not None:
            names += _load_part(model, part, folder / f"{part}.safetensors", files[f"{part}.safetensors"])
    if "lora" in files:
        if not hasattr(model.llm, "peft_config"):
            raise ModelFolderError(f"{folder}: has a LoRA, and the llm block has none: give it the same lora entry")
        _load_lora(model.llm, folder / "lora")
        names += [name for name in model.state_dict() if name.startswith("llm.") and "lora_" in name]
    return names


def load_language_model(folder: Path, config: Mapping[str, Any]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """LLM of a model's folder with its LoRA and trained tensors, and its tokenizer; raises as `load_model` does."""
    llm_config = _located(config, "llm", folder)
    llm, tokenizer = load_llm(llm_config)
    if "llm.safetensors" in config["tensors"]:
        count = config["tensors"]["llm.safetensors"]
        _load_part(nn.ModuleDict({"llm": llm}), "llm", folder / "llm.safetensors", count)
    if llm_config.get("lora") is not None:
        _load_lora(llm, folder / "lora")
    return llm, tokenizer


def _located(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """The encoder's or the LLM's configuration with its sources as they are found from here."""
    return map_sources(config[name], partial(find_source, folder=folder), name)


@torch.no_grad()
def _load_part(model: nn.Module, part: str, path: Path, count: int | None) -> list[str]:
    """Copy a part's tensors into the model and return their names there; each needs a place, and none may be missing.

    An adapter that was written without a LoRA fits one that has one, whose LoRA then stays as it is.
    """
    tensors = read_tensors(path)
    here = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.startswith(f"{part}.")}
    if part == "adapter" and not any("lora_" in name for name in tensors):
        here = {name: tensor for name, tensor in here.items() if "lora_" not in name}
        own = {stored_name(name, part).replace(".base_layer.", "."): name for name in here}
    else:
        own = {stored_name(name, part): name for name in here}
    if unknown := sorted(set(tensors) - set(own)):
        raise ModelFolderError(f"{path}: {len(unknown)} tensors have no place in this {part}, for example {unknown[0]}")
    missing = sorted(set(own) - set(tensors)) if part == "adapter" else []
    if missing or len(tensors) != count:
        example = f", for example {missing[0]}" if missing else ""
        raise ModelFolderError(
            f"{path}: {len(tensors)} tensors where {count} were written{example} is missing; fetch it again"
        )
    for name, tensor in tensors.items():
        target = here[own[name]]
        if target.shape != tensor.shape:
            raise ModelFolderError(f"{path}: {name} has shape {list(tensor.shape)}, the {part} {list(target.shape)}")
        target.copy_(tensor)
    return [own[name] for name in tensors]


def _load_lora(llm: nn.Module, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    tensors = read_tensors(path)
    own = get_peft_model_state_dict(llm, save_embedding_layers=False)
    if different := sorted(set(own) ^ set(tensors)):
        side = "is not in the file" if different[0] in own else "has no place in this LLM"
        raise ModelFolderError(f"{path}: {len(different)} tensors do not match this LoRA: {different[0]} {side}")
    wrong = [name for name, tensor in tensors.items() if own[name].shape != tensor.shape]
    if wrong:
        raise ModelFolderError(f"{path}: {wrong[0]} has shape {list(tensors[wrong[0]].shape)}, the LLM's is another")
    set_peft_model_state_dict(llm, tensors)
    if not lora_is_trained(llm):
        raise ModelFolderError(
            f"{path}: every lora_B is zero, so the LoRA does nothing; fetch it again or convert it anew"
        )


def _identity(folder: Path, files: Mapping[str, int]) -> str:
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for name in sorted(files):
        path = folder / (f"{name}/adapter_model.safetensors" if name == "lora" else name)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
