"""SALMONN's `.pth`, also of its light recipe: LayerNorms, query, window Q-Former, projection and LoRA."""

from collections.abc import Mapping

from torch import Tensor

from audiolm_lite.convert.llm_names import llm_rules
from audiolm_lite.convert.qformer_names import block_rules, block_sizes
from audiolm_lite.convert.tensor_rules import Converted, Rule, apply_rules

FILES = ("*.pth",)
OPTIONS = {
    "window": (int, 17, "frames per window (default: 17)"),
    "heads": (int, None, "attention heads of the Q-Former (default: its width / 64)"),
}
LORA_ALPHA = 32
TEMPLATE = "{bos}USER: <Speech>{audio}</Speech> {instruction}\nASSISTANT:{answer}{eos}"

_BERT = r"speech_Qformer\.bert\."
_RULES = [
    Rule(r"ln_speech\.(\w+)", "adapter", r"stream_norms.0.\1"),
    Rule(r"ln_audio\.(\w+)", "adapter", r"stream_norms.1.\1"),
    Rule(r"speech_query_tokens", "adapter", "query", lambda query: query.squeeze(0)),
    Rule(_BERT + r"embeddings\.LayerNorm\.(\w+)", "adapter", r"query_norm.\1"),
    Rule(_BERT + r"embeddings\.position_ids", "ignored", "position numbers, which queries do not use"),
    *block_rules(_BERT, "self"),
    Rule(r"speech_llama_proj\.(\w+)", "adapter", r"projection.\1"),
    Rule(r"beats\..*", "ignored", "BEATs itself, pretrained and frozen; it has its own source"),
]


def convert(tensors: Mapping[str, Tensor], *, window: int = 17, heads: int | None = None) -> Converted:
    """Convert the tensors of a `.pth`. The block drops the frames of an incomplete window, as in SALMONN's training.

    Examples
    --------
    >>> import torch
    >>> tensors = {
    ...     "ln_speech.weight": torch.ones(4),
    ...     "speech_query_tokens": torch.zeros(1, 1, 64),
    ...     "speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight": torch.zeros(128, 64),
    ...     "speech_llama_proj.weight": torch.zeros(8, 64),
    ... }
    >>> converted = convert(tensors)
    >>> converted.block["streams"], converted.block["heads"], converted.sizes
    ([4], 1, {'feature_dim': 4, 'llm_dim': 8})
    """
    result = apply_rules(tensors, _RULES + llm_rules(tensors, r"llama_model\."))
    adapter = result.adapter
    streams = [len(adapter[f"stream_norms.{i}.weight"]) for i in (0, 1) if i == 0 or "stream_norms.1.weight" in adapter]
    sizes = block_sizes(adapter, heads)
    result.block = {
        "type": "window_qformer", "streams": streams, "window": window, **sizes, "published_behaviour": True
    }  # fmt: skip
    result.sizes = {"feature_dim": sum(streams), "llm_dim": adapter["projection.weight"].shape[0]}
    return result
