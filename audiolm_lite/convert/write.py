"""Write a converted checkpoint: adapter, LoRA, trained LLM tensors, and a model folder if encoder and LLM are known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.convert.read import PEFT_CONFIG
from audiolm_lite.convert.tensor_rules import Converted
from audiolm_lite.hub.save import make_config, write_config
from audiolm_lite.storage.atomic import atomic_folder


def write_folder(
    converted: Converted,
    out: Path,
    *,
    lora: Mapping[str, Any] | None,
    peft_config: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    llm: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> None:
    """Write the folder `out` atomically.

    Parameters
    ----------
    converted : Converted
    out : path
        Must not exist.
    lora : mapping or None
        Entry `lora` of the LLM's block.
    peft_config : mapping, optional
        Content of `adapter_config.json`; by default it is derived from `lora`.
    encoder, llm : mapping, optional
        Blocks with a `source`. With both, `out` is a model folder, which `AudioLM.from_pretrained` loads.
    template : str, optional
        Prompt of the model.

    Raises
    ------
    FileExistsError
        `out` exists.

    Examples
    --------
    >>> import torch
    >>> converted = Converted(block={"type": "identity"}, sizes={"feature_dim": 4, "llm_dim": 8})
    >>> converted.adapter["projection.bias"] = torch.zeros(8)
    >>> out = getfixture("tmp_path") / "converted"
    >>> write_folder(converted, out, lora=None)
    >>> sorted(file.name for file in out.iterdir())
    ['adapter.safetensors', 'adapter.yaml']
    >>> print((out / "adapter.yaml").read_text(), end="")
    # Converted; feature_dim 4, llm_dim 8.
    type: identity
    """
    with atomic_folder(out) as unfinished:
        counts: dict[str, int] = {}
        for part in ("adapter", "llm"):
            if tensors := getattr(converted, part):
                save_file(tensors, unfinished / f"{part}.safetensors")
                counts[f"{part}.safetensors"] = len(tensors)
        if converted.block:
            sizes = ", ".join(f"{name} {size}" for name, size in converted.sizes.items())
            text = f"# Converted; {sizes}.\n" + yaml.safe_dump(converted.block, sort_keys=False)
            (unfinished / "adapter.yaml").write_text(text, encoding="utf-8")
        if converted.lora:
            base_model = str(llm["source"]) if llm else ""
            write_lora(unfinished / "lora", converted.lora, peft_config or _peft_config(lora or {}), base_model)
            counts["lora"] = len(converted.lora)
        if converted.block and encoder and llm:
            experiment = {
                "encoder": encoder,
                "adapter": converted.block,
                "llm": {**llm, "lora": dict(lora) if lora else None},
                "template": template,
            }
            write_config(unfinished, make_config(experiment, out), counts)


def write_lora(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], base_model: str) -> None:
    """Write a PEFT folder that `PeftModel.from_pretrained` loads.

    Examples
    --------
    >>> import torch
    >>> folder = getfixture("tmp_path") / "lora"
    >>> write_lora(folder, {"lora_A.weight": torch.zeros(8, 64)}, {"peft_type": "LORA", "r": 8}, "owner/llm")
    >>> sorted(file.name for file in folder.iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    >>> json.loads((folder / "adapter_config.json").read_text())
    {'peft_type': 'LORA', 'r': 8, 'base_model_name_or_path': 'owner/llm'}
    """
    folder.mkdir()
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**config, "base_model_name_or_path": base_model}, indent=1)
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
