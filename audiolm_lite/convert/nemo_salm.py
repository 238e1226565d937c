"""NeMo's SALM: Lightning checkpoints and Hugging Face folders with Conformer or identity adapter, projection, LoRA."""

from collections.abc import Mapping

from torch import Tensor

from audiolm_lite.convert.llm_names import llm_rules
from audiolm_lite.convert.tensor_rules import Converted, Rule, Tensors, apply_rules

FILES = ("model.safetensors", "*.ckpt")
OPTIONS: dict[str, tuple] = {}
LORA_ALPHA = None  # differs between models; their configuration contains it
TEMPLATE = "{chat}{instruction}{audio}"

_ADAPTER = r"perception\.modality_adapter\."
_LAYER = _ADAPTER + r"layers\.(\d+)\."


def _pointwise(weight: Tensor) -> Tensor:
    """Kernel [out, in, 1] of a pointwise convolution as a matrix [out, in]."""
    return weight.squeeze(-1)


_RULES = [
    Rule(_ADAPTER + r"pre_encode\.(conv\.\d+|out)\.(\w+)", "adapter", r"subsampling.\1.\2"),
    Rule(_ADAPTER + r"pre_encode\.(weight|bias)", "adapter", r"subsampling.\1"),
    Rule(_ADAPTER + r"pos_enc\.pe", "ignored", "sinusoids, computed"),
    Rule(_LAYER + r"norm_feed_forward([12])\.(\w+)", "adapter", r"blocks.\1.feed_forward_\2.norm.\3"),
    Rule(_LAYER + r"feed_forward([12])\.linear1\.(\w+)", "adapter", r"blocks.\1.feed_forward_\2.expand.\3"),
    Rule(_LAYER + r"feed_forward([12])\.linear2\.(\w+)", "adapter", r"blocks.\1.feed_forward_\2.reduce.\3"),
    Rule(_LAYER + r"norm_self_att\.(\w+)", "adapter", r"blocks.\1.attention_norm.\2"),
    Rule(_LAYER + r"self_attn\.linear_q\.(\w+)", "adapter", r"blocks.\1.attention.query.\2"),
    Rule(_LAYER + r"self_attn\.linear_k\.(\w+)", "adapter", r"blocks.\1.attention.key.\2"),
    Rule(_LAYER + r"self_attn\.linear_v\.(\w+)", "adapter", r"blocks.\1.attention.value.\2"),
    Rule(_LAYER + r"self_attn\.linear_out\.(\w+)", "adapter", r"blocks.\1.attention.out.\2"),
    Rule(_LAYER + r"self_attn\.linear_pos\.weight", "adapter", r"blocks.\1.attention.position.weight"),
    Rule(_LAYER + r"self_attn\.pos_bias_u", "adapter", r"blocks.\1.attention.content_bias"),
    Rule(_LAYER + r"self_attn\.pos_bias_v", "adapter", r"blocks.\1.attention.position_bias"),
    Rule(_LAYER + r"norm_conv\.(\w+)", "adapter", r"blocks.\1.convolution.norm.\2"),
    Rule(_LAYER + r"conv\.pointwise_conv1\.weight", "adapter", r"blocks.\1.convolution.expand.weight", _pointwise),
    Rule(_LAYER + r"conv\.pointwise_conv1\.bias", "adapter", r"blocks.\1.convolution.expand.bias"),
    Rule(_LAYER + r"conv\.depthwise_conv\.(\w+)", "adapter", r"blocks.\1.convolution.depthwise.\2"),
    Rule(_LAYER + r"conv\.batch_norm\.(\w+)", "adapter", r"blocks.\1.convolution.batch_norm.\2"),
    Rule(_LAYER + r"conv\.pointwise_conv2\.weight", "adapter", r"blocks.\1.convolution.reduce.weight", _pointwise),
    Rule(_LAYER + r"conv\.pointwise_conv2\.bias", "adapter", r"blocks.\1.convolution.reduce.bias"),
    Rule(_LAYER + r"norm_out\.(\w+)", "adapter", r"blocks.\1.norm.\2"),
    Rule(r"perception\.proj\.(\w+)", "adapter", r"projection.\1"),
    Rule(r"perception\.preprocessor\..*", "ignored", "window and mel filters, computed"),
    Rule(r"perception\.encoder\..*", "ignored", "the ASR encoder of NeMo; the encoder block names the one to use"),
]


def convert(tensors: Mapping[str, Tensor]) -> Converted:
    """Convert the tensors of a SALM. NeMo stores the embeddings outside the LLM; they become the LLM's again.

    Examples
    --------
    >>> import torch
    >>> converted = convert({"perception.proj.weight": torch.zeros(8, 4), "perception.proj.bias": torch.zeros(8)})
    >>> list(converted.adapter)
    ['projection.bias', 'projection.weight']
    >>> converted.block, converted.sizes
    ({'type': 'identity'}, {'feature_dim': 4, 'llm_dim': 8})
    """
    renamed = {"llm.model.embed_tokens.weight" if n == "embed_tokens.weight" else n: t for n, t in tensors.items()}
    result = apply_rules(renamed, _RULES + llm_rules(tensors, r"llm\."))
    adapter = result.adapter
    llm_dim, dim = adapter["projection.weight"].shape
    result.sizes = {"feature_dim": dim, "llm_dim": llm_dim}
    result.block = {"type": "identity"}
    if len(adapter) > 2:
        subsampling, result.sizes["feature_dim"] = _subsampling(adapter)
        result.block = {
            "type": "conformer",
            "dim": dim,
            "heads": adapter["blocks.0.attention.content_bias"].shape[0],
            "blocks": 1 + max(int(name.split(".")[1]) for name in adapter if name.startswith("blocks.")),
            "kernel": adapter["blocks.0.convolution.depthwise.weight"].shape[-1],
            "expansion": adapter["blocks.0.feed_forward_1.expand.weight"].shape[0] // dim,
            **subsampling,
        }
    return result


def _subsampling(adapter: Tensors) -> tuple[dict, int]:
    """Block entries of the subsampling, and the encoder's dimension (assumed to be a multiple of the factor)."""
    if "subsampling.weight" in adapter:
        return {"factor": 1}, adapter["subsampling.weight"].shape[1]
    channels = adapter["subsampling.conv.0.weight"].shape[0]
    convs = [tensor for name, tensor in adapter.items() if name.startswith("subsampling.conv.") and tensor.dim() == 4]
    separable = any(conv.shape[-1] == 1 for conv in convs)
    factor = 2 ** sum(conv.shape[-1] == 3 for conv in convs)
    kind = "striding" if len(convs) > 1 and not separable else "dw_striding"
    feature_dim = adapter["subsampling.out.weight"].shape[1] // channels * factor
    return {"factor": factor, "subsampling": kind, "channels": channels}, feature_dim
