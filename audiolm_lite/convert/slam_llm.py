"""SLAM-LLM's `model.pt`: the projector (linear, "cov1d" or Q-Former) and the LoRA, if one was trained."""

from collections.abc import Mapping

from torch import Tensor

from audiolm_lite.convert.llm_names import llm_rules
from audiolm_lite.convert.qformer_names import block_rules, block_sizes
from audiolm_lite.convert.tensor_rules import Converted, Rule, apply_rules

FILES = ("model.pt", "pytorch_model.bin")
LORA_PREFIX = "llm."  # prefix for the names of a LoRA that is stored as a PEFT folder next to the file
OPTIONS = {
    "stride": (int, 5, "frames per token of the linear projector, encoder_projector_ds_rate (default: 5)"),
    "heads": (int, None, "attention heads of the Q-Former (default: its width / 64)"),
}
LORA_ALPHA = 32
TEMPLATE = "{audio}{bos}USER: {instruction}\n ASSISTANT:{answer}{eos}"

_PROJECTOR = r"encoder_projector\."
_RULES = [
    # [D, D, k] over channels and time to [D, k * D]: the adapter concatenates frames one after the other
    Rule(_PROJECTOR + r"conv1d\.weight", "adapter", "conv.weight", lambda weight: weight.permute(0, 2, 1).flatten(1)),
    Rule(_PROJECTOR + r"conv1d\.bias", "adapter", "conv.bias"),
    Rule(_PROJECTOR + r"linear1\.(\w+)", "adapter", r"stacked.\1"),
    Rule(_PROJECTOR + r"linear2\.(\w+)", "adapter", r"projection.\1"),
    Rule(_PROJECTOR + r"query", "adapter", "query", lambda query: query.squeeze(0)),
    Rule(_PROJECTOR + r"qformer\.layernorm\.(\w+)", "adapter", r"query_norm.\1"),
    Rule(_PROJECTOR + r"(linear|norm)\.(\w+)", "adapter", r"\1.\2"),
    *block_rules(_PROJECTOR + r"qformer\.", "attention"),
]


def convert(tensors: Mapping[str, Tensor], *, stride: int = 5, heads: int | None = None) -> Converted:
    """Convert the tensors of a `model.pt`; raises ConversionError if sizes do not follow from them.

    Examples
    --------
    >>> import torch
    >>> sizes = {"linear1": (16, 20), "linear2": (8, 16)}
    >>> converted = convert({f"encoder_projector.{name}.weight": torch.zeros(size) for name, size in sizes.items()})
    >>> list(converted.adapter)
    ['stacked.weight', 'projection.weight']
    >>> converted.block, converted.sizes
    ({'type': 'linear', 'stride': 5, 'hidden_dim': 16, 'conv': False}, {'feature_dim': 4, 'llm_dim': 8})
    """
    result = apply_rules(tensors, _RULES + llm_rules(tensors, r"llm\."))
    adapter = result.adapter
    if "query" in adapter:
        crossed = sorted({int(name.split(".")[1]) for name in adapter if ".cross_norm.weight" in name})
        sizes = block_sizes(adapter, heads)
        every = crossed[1] - crossed[0] if len(crossed) > 1 else sizes["blocks"]
        result.block = {"type": "qformer", **sizes, "cross_every": every}
        feature_dim, llm_dim = (
            adapter["blocks.0.cross_attention.key.weight"].shape[1],
            adapter["linear.weight"].shape[0],
        )
    else:
        conv = "conv.weight" in adapter
        hidden_dim, feature_dim = adapter["stacked.weight"].shape
        if conv:
            stride = adapter["conv.weight"].shape[1] // feature_dim
        else:
            feature_dim //= stride
        result.block = {"type": "linear", "stride": stride, "hidden_dim": hidden_dim, "conv": conv}
        llm_dim = adapter["projection.weight"].shape[0]
    result.sizes = {"feature_dim": feature_dim, "llm_dim": llm_dim}
    return result
