"""Outwards: a model's LoRA as a PEFT folder, or its LLM with the LoRA merged as a Hugging Face folder."""

import os
import shutil
from pathlib import Path

from audiolm_lite.convert.accounting import ConversionError
from audiolm_lite.hub.folder import read_config
from audiolm_lite.hub.load import load_language_model
from audiolm_lite.modeling.lora import merge_lora


def export_lora(folder: Path, out: Path) -> None:
    """Copy the LoRA of a model's folder to `out`, which `PeftModel.from_pretrained` loads over the same LLM.

    Raises
    ------
    ConversionError
        The model has no LoRA, or `out` exists.
    """
    _require_new(out)
    if "lora" not in read_config(folder)["tensors"]:
        raise ConversionError(f"{folder}: this model has no LoRA; export_merged writes its LLM")
    shutil.copytree(folder / "lora", temporary := _temporary(out))
    os.replace(temporary, out)


def export_merged(folder: Path, out: Path) -> None:
    """Write the LLM of a model's folder, LoRA and trained tensors merged, for `AutoModelForCausalLM`.

    A quantised LLM is loaded without quantisation, since rounded weights plus a LoRA cannot be rounded again unharmed.

    Raises
    ------
    ConversionError
        `out` exists.
    """
    _require_new(out)
    config = read_config(folder)
    config["llm"] = {name: value for name, value in config["llm"].items() if name != "quantization"}
    llm, tokenizer = load_language_model(folder, config)
    llm = merge_lora(llm)
    temporary = _temporary(out)
    llm.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, out)


def _require_new(out: Path) -> None:
    if out.exists():
        raise ConversionError(f"{out} exists; name a folder that does not")


def _temporary(out: Path) -> Path:
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    return temporary
