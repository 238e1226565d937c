"""LTU-AS: SpeechBrain's `model.ckpt` and `llama3.ckpt`, `.bin` of the original code, AudioSet's TLTR `.pth`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.backbones.tensor_report import ConversionError, TensorStatus
from audiolm_lite.convert.llm_names import llm_rules
from audiolm_lite.convert.tensor_rules import Converted, Rule, apply_rules

FILES = ("model.ckpt", "llama3.ckpt")
OPTIONS = {
    "llm_dim": (int, None, "embedding size of the LLM, for the random projection that AudioSet's TLTR needs"),
}
LORA_ALPHA = 16
TEMPLATE = (
    "{audio}{bos}<|start_header_id|>system<|end_header_id|>\n\nYou are an assistant that understands audio and speech."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{answer}{eos}"
)

_ORIGINAL = r"(?:base_model\.model\.)?model\."
_BLOCK = rf"(?:0\.at_model|at_model|{_ORIGINAL}audio_encoder)\.(time|layer)_tr\."
_RULES = [
    Rule(_BLOCK + r"attn\.(query|key|value|out)\.(\w+)", "adapter", r"\1_block.\2.\3"),
    Rule(_BLOCK + r"attn_ln\.(\w+)", "adapter", r"\1_block.attention_norm.\2"),
    Rule(_BLOCK + r"mlp_ln\.(\w+)", "adapter", r"\1_block.mlp_norm.\2"),
    Rule(_BLOCK + r"mlp\.([02])\.(\w+)", "adapter", r"\1_block.mlp.\2.\3"),
    Rule(r"(?:0\.)?at_model\.mlp_layer\..*", "ignored", "AudioSet's classifier, which LTU-AS does not use"),
    Rule(rf"(?:1\.proj|{_ORIGINAL}audio_proj\.1)\.(\w+)", "adapter", r"projection.\1"),
]


def convert(tensors: Mapping[str, Tensor], *, llm_dim: int | None = None) -> Converted:
    """Convert the tensors of one or both files. They do not contain the number of encoder layers.

    Raises
    ------
    ConversionError
        The file is AudioSet's TLTR, and `llm_dim` is None.

    Examples
    --------
    >>> converted = convert({"0.at_model.time_tr.attn_ln.weight": torch.ones(4), "1.proj.weight": torch.zeros(8, 4)})
    >>> list(converted.adapter)
    ['time_block.attention_norm.weight', 'projection.weight']
    >>> converted.block, converted.sizes
    ({'type': 'tltr'}, {'feature_dim': 4, 'llm_dim': 8})
    """
    # SpeechBrain stores the LLM in an attribute `model`
    result = apply_rules(tensors, _RULES + llm_rules(tensors, r"(?:model\.)?"))
    adapter = result.adapter
    feature_dim = adapter["time_block.attention_norm.weight"].shape[0]
    if all(name.startswith("at_model.") for name in tensors):
        if llm_dim is None:
            raise ConversionError(
                "this is AudioSet's TLTR, which has no projection to an LLM; add --llm_dim to create a random one"
            )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            projection = TLTR(feature_dim, 1, llm_dim, layer_heads=1).projection
        for name, tensor in projection.state_dict().items():
            adapter[f"projection.{name}"] = tensor
            result.report.append(TensorStatus("(none)", "used", f"adapter: projection.{name}, new and random"))
    result.block = {"type": "tltr"}
    result.sizes = {"feature_dim": feature_dim, "llm_dim": adapter["projection.weight"].shape[0]}
    return result
