"""Which LLMs the C++ step can run; everything else is refused by name before a run."""

from torch import nn

from audiolm_lite.modeling.llm_layers import attention_windows
from audiolm_lite.modeling.lora import is_quantized, unwrap_peft

# Model types of transformers whose layers are RMSNorm, rotary attention and a gated MLP, in this order and with these
# names. Others (Gemma, Granite, OLMo, Phi-3) scale, norm or fuse differently.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
# Angles that depend on the length of the text, so that there is no table of them.
LENGTH_DEPENDENT = ("dynamic", "longrope")


def why_unsupported(llm: nn.Module) -> str | None:
    """Find out whether the C++ step can run an LLM.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers.

    Returns
    -------
    str or None
        What cannot be run, or None.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> why_unsupported(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)))
    'model type gpt2 (it runs llama, mistral, qwen2, qwen3, smollm3)'
    """
    if is_quantized(llm):
        return "a quantised LLM; load it in float32 or bfloat16, and choose cpu-int8 or cpu-int4"
    causal_lm = unwrap_peft(llm)
    config = causal_lm.config.get_text_config()
    if config.model_type not in MODEL_TYPES:
        return f"model type {config.model_type} (it runs {', '.join(MODEL_TYPES)})"
    weight = causal_lm.get_input_embeddings().weight
    if weight.device.type != "cpu" or str(weight.dtype) not in ("torch.float32", "torch.bfloat16"):
        return f"weights in {str(weight.dtype).removeprefix('torch.')} on {weight.device}; load them in float32 on cpu"
    if config.hidden_act not in ("silu", "swish"):
        return f"hidden_act {config.hidden_act} (it runs silu)"
    if any(window is not None for window in attention_windows(config).values()):
        return "attention with a sliding window"
    rotary = rope_type(causal_lm)
    if rotary in LENGTH_DEPENDENT:
        return f"rotary positions of type {rotary}, whose angles depend on the length"
    for number, layer in enumerate(causal_lm.base_model.layers):
        for block, names in PROJECTIONS.items():
            for name in names:
                projection = getattr(getattr(layer, block), name)
                if type(projection) is not nn.Linear:
                    return (
                        f"layer {number}: {block}.{name} is a {type(projection).__name__}, not a plain linear layer; "
                        "merge a LoRA first (modeling.lora.merge_lora)"
                    )
    return None


def rope_type(causal_lm: nn.Module) -> str:
    """Return the kind of rotary positions, for example "default", "llama3" or "yarn".

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> rope_type(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))
    'default'
    """
    return str(getattr(causal_lm.base_model.rotary_emb, "rope_type", "default"))
