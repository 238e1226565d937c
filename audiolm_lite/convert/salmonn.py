"""SALMONN's `.pth`: LayerNorms, query, window Q-Former, projection and LoRA; also files of the light recipe."""

from collections.abc import Mapping

from torch import Tensor

from audiolm_lite.convert.accounting import Converted, Rule, sort_tensors
from audiolm_lite.convert.llm_names import llm_rules
from audiolm_lite.convert.qformer_names import block_rules, block_sizes

FILES = ("*.pth",)
OPTIONS = {
    "window": (int, 17, "frames of a window; default: 17"),
    "heads": (int, None, "attention heads of the Q-Former; default: its width / 64"),
}
LORA_ALPHA = 32
TEMPLATE = "{bos}USER: <Speech>{audio}</Speech> {instruction}\nASSISTANT:{answer}{eos}"

_BERT = r"speech_Qformer\.bert\."
_RULES = [
    Rule(r"ln_speech\.(\w+)", "adapter", r"stream_norms.0.\1"),
    Rule(r"ln_audio\.(\w+)", "adapter", r"stream_norms.1.\1"),
    Rule(r"speech_query_tokens", "adapter", "query", lambda query: query.squeeze(0)),
    Rule(_BERT + r"embeddings\.LayerNorm\.(\w+)", "adapter", r"query_norm.\1"),
    Rule(_BERT + r"embeddings\.position_ids", "ignored", "numbers positions, which queries have none of"),
    *block_rules(_BERT, "self"),
    Rule(r"speech_llama_proj\.(\w+)", "adapter", r"projection.\1"),
    Rule(r"beats\..*", "ignored", "BEATs itself, pretrained and frozen: the encoder's source has it"),
]


def convert(tensors: Mapping[str, Tensor], *, window: int = 17, heads: int | None = None) -> Converted:
    """Sort the tensors of a `.pth`; the block keeps SALMONN's dropped tail, with which it was trained."""
    result = sort_tensors(tensors, _RULES + llm_rules(tensors, r"llama_model\."))
    adapter = result.adapter
    streams = [len(adapter[f"stream_norms.{i}.weight"]) for i in (0, 1) if i == 0 or "stream_norms.1.weight" in adapter]
    sizes = block_sizes(adapter, heads)
    result.block = {
        "type": "window_qformer", "streams": streams, "window": window, **sizes, "published_behaviour": True
    }  # fmt: skip
    result.sizes = {"feature_dim": sum(streams), "llm_dim": adapter["projection.weight"].shape[0]}
    return result
