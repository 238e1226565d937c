"""Writing what a checkpoint was converted to: adapter, LoRA and, where encoder and LLM are known, a model's folder."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.convert.accounting import ConversionError, Converted
from audiolm_lite.convert.read import PEFT_CONFIG
from audiolm_lite.hub.save import make_config, write_config


def write_folder(
    converted: Converted,
    out: Path,
    *,
    lora: Mapping[str, Any] | None,
    peft: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    llm: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> None:
    """Write the folder `out`, which appears whole or not at all.

    Parameters
    ----------
    converted : Converted
    out : path
        Must not exist.
    lora : mapping or None
        Entry `lora` of the LLM's block.
    peft : mapping, optional
        A PEFT configuration to write in place of one made from `lora`.
    encoder, llm : mapping, optional
        Blocks with a `source`. With both, the folder is a whole model's, which `AudioLM.from_pretrained` loads.
    template : str, optional
        The model's prompt.
    """
    if out.exists():
        raise ConversionError(f"{out} exists; name a folder that does not")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    source = str(llm["source"]) if llm else ""
    counts: dict[str, int] = {}
    for part in ("adapter", "llm"):
        if tensors := getattr(converted, part):
            save_file(tensors, temporary / f"{part}.safetensors")
            counts[f"{part}.safetensors"] = len(tensors)
    if converted.block:
        sizes = ", ".join(f"{name} {size}" for name, size in converted.sizes.items())
        text = f"# Converted; {sizes}.\n" + yaml.safe_dump(converted.block, sort_keys=False)
        (temporary / "adapter.yaml").write_text(text, encoding="utf-8")
    if converted.lora:
        write_lora(temporary / "lora", converted.lora, peft or _peft_config(lora or {}), source)
        counts["lora"] = len(converted.lora)
    if converted.block and encoder and llm:
        experiment = {
            "encoder": encoder,
            "adapter": converted.block,
            "llm": {**llm, "lora": dict(lora) if lora else None},
            "template": template,
        }
        write_config(temporary, make_config(experiment, out), counts)
    os.replace(temporary, out)


def write_lora(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], base: str) -> None:
    """Write a PEFT folder that `PeftModel.from_pretrained` loads."""
    folder.mkdir()
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**config, "base_model_name_or_path": base}, indent=1)
    (folder / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def _peft_config(lora: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": lora["r"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "target_modules": lora["target_modules"],
        "bias": "none",
    }
