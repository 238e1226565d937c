"""Voxtral: PEFT folders under the module names of any transformers, and a whole model's projector.

transformers 5 moved Voxtral's modules below one `model`; a LoRA saved before that names modules that are no longer
there, and the other way round.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiolm_lite.convert.accounting import ConversionError, Converted, Rule, sort_tensors
from audiolm_lite.convert.read import read_published

FILES = ("adapter_model.safetensors", "adapter_model.bin", "model*.safetensors")
OPTIONS = {
    "layout": (str, None, 'module names to write, "old" or "new"; default: those of the installed transformers'),
    "projector": (Path, None, "a Voxtral's folder or file: make an adapter of its projector and a LoRA on it"),
}
TEMPLATE = "{bos}[INST]{audio}{instruction}[/INST]{answer}{eos}"

_TO_NEW = [
    (r"^language_model\.lm_head\b", "lm_head"),
    (r"^language_model\.model\b", "model.language_model"),
    (r"^(audio_tower|multi_modal_projector)\b", r"model.\1"),
]
_TO_OLD = [
    (r"^lm_head\b", "language_model.lm_head"),
    (r"^model\.language_model\b", "language_model.model"),
    (r"^model\.(audio_tower|multi_modal_projector)\b", r"\1"),
]
_RULES = [
    Rule(r"(?:model\.)?multi_modal_projector\.linear_1\.weight", "adapter", "pooled.weight"),
    Rule(r"(?:model\.)?multi_modal_projector\.linear_2\.weight", "adapter", "projection.weight"),
    Rule(r"(?:model\.)?audio_tower\..*", "ignored", "the encoder, pretrained: the encoder's source has it"),
    Rule(r"(?:model\.)?language_model\..*|lm_head\.weight", "ignored", "the LLM, pretrained: the LLM's source has it"),
]
_LORA = r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"


def installed_layout() -> str:
    """Module layout of the transformers that is installed, "old" or "new"."""
    from transformers.models.voxtral import modeling_voxtral

    return "new" if hasattr(modeling_voxtral, "VoxtralModel") else "old"


def rename(name: str, layout: str) -> str:
    """Name of a module or tensor of `VoxtralForConditionalGeneration` in this layout, from either."""
    for pattern, replacement in _TO_NEW if layout == "new" else _TO_OLD:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def convert(tensors: Mapping[str, Tensor], *, layout: str | None = None, projector: Path | None = None) -> Converted:
    """Sort the tensors of a PEFT folder or of a whole model.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    layout : {"old", "new"}, optional
        Module names of the LoRA that comes out; those of the installed transformers if None.
    projector : path, optional
        The model that the LoRA is for. The projector with its LoRA becomes an adapter, as a whole model's alone does.
    """
    if not any(".lora_" in name for name in tensors):
        return _projector(tensors)
    if projector is not None:
        return _adapted_projector(tensors, projector)
    result = sort_tensors(tensors, [Rule(_LORA, "lora", r"base_model.model.\1.lora_\2.weight")])
    layout = layout or installed_layout()
    prefix = "base_model.model."
    for name in list(result.lora):
        result.lora[prefix + rename(name.removeprefix(prefix), layout)] = result.lora.pop(name)
    for line in result.lines:
        if line.status == "used":
            line.note = f"lora: {prefix}{rename(line.note.removeprefix(f'lora: {prefix}'), layout)}"
    return result


def _projector(tensors: Mapping[str, Tensor]) -> Converted:
    result = sort_tensors(tensors, _RULES)
    joined, llm_dim = result.adapter["pooled.weight"].shape[1], result.adapter["projection.weight"].shape[0]
    convolution = next((tensor for name, tensor in tensors.items() if name.endswith("audio_tower.conv1.weight")), None)
    stride = 4 if convolution is None else joined // convolution.shape[0]
    result.block = {"type": "mlp_pooling", "pooling": "concat", "stride": stride, "bias": False}
    result.sizes = {"feature_dim": joined // stride, "llm_dim": llm_dim}
    return result


def _adapted_projector(tensors: Mapping[str, Tensor], projector: Path) -> Converted:
    lora = r"base_model\.model\.(?:model\.)?multi_modal_projector\.linear_{}\.lora_([AB])(?:\.default)?\.weight"
    rules = [
        Rule(lora.format(1), "adapter", r"pooled.lora_\1.default.weight"),
        Rule(lora.format(2), "adapter", r"projection.lora_\1.default.weight"),
    ]
    result, base = sort_tensors(tensors, rules), _projector(read_published(projector, FILES).tensors)
    rank = result.adapter["pooled.lora_A.default.weight"].shape[0]
    result.adapter |= {name.replace(".weight", ".base_layer.weight"): tensor for name, tensor in base.adapter.items()}
    result.lines += base.lines
    result.block, result.sizes = {**base.block, "lora": {"r": rank, "alpha": None, "dropout": 0.0}}, base.sizes
    return result


def peft_config(config: Mapping[str, Any], lora: Mapping[str, Tensor]) -> dict[str, Any]:
    """A PEFT folder's configuration for these LoRA tensors, naming whole modules so that it fits this layout alone.

    Raises
    ------
    ConversionError
        There is none, or it is for a method other than plain LoRA.
    """
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        kind = "DoRA or modules_to_save" if config.get("peft_type") == "LORA" else repr(config.get("peft_type"))
        raise ConversionError(f"adapter_config.json beside the tensors must say plain LORA; it says {kind}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConversionError("adapter_config.json gives modules ranks or alphas of their own; that is not supported")
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in lora})
    return {**config, "target_modules": modules, "inference_mode": True}
