"""LTU-AS: SpeechBrain's `model.ckpt` and `llama3.ckpt`, the original's `.bin`, and AudioSet's TLTR `.pth`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.convert.accounting import ConversionError, Converted, Line, Rule, sort_tensors
from audiolm_lite.convert.llm_names import llm_rules

FILES = ("model.ckpt", "llama3.ckpt")
OPTIONS = {
    "llm_dim": (int, None, "for AudioSet's TLTR, which has no projection: the LLM's width, for a new random one"),
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
    """Sort the tensors of one or both files; the number of encoder layers is in none of them.

    Raises
    ------
    ConversionError
        AudioSet's TLTR without `llm_dim`.
    """
    # SpeechBrain holds the LLM in an attribute `model`
    result = sort_tensors(tensors, _RULES + llm_rules(tensors, r"(?:model\.)?"))
    adapter = result.adapter
    feature_dim = adapter["time_block.attention_norm.weight"].shape[0]
    if all(name.startswith("at_model.") for name in tensors):
        if llm_dim is None:
            raise ConversionError(
                "this is AudioSet's TLTR, without a projection to an LLM: give --llm_dim for a new one"
            )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            projection = TLTR(feature_dim, 1, llm_dim, layer_heads=1).projection
        for name, tensor in projection.state_dict().items():
            adapter[f"projection.{name}"] = tensor
            result.lines.append(Line("(none)", "used", f"adapter: projection.{name}, new and random"))
    result.block = {"type": "tltr"}
    result.sizes = {"feature_dim": feature_dim, "llm_dim": adapter["projection.weight"].shape[0]}
    return result
