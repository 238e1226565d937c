"""Tiny checkpoints with published names: tensors of this project's adapters, renamed by tables."""

import re

import torch

from audiolm_lite.config.registry import build

DIM = 16  # dimension of the tiny encoder's frames and of the tiny LLM's embeddings

_BLOCKS = [
    (r"blocks\.(\d+)\.self_attention\.out", r"encoder.layer.\1.attention.output.dense"),
    (r"blocks\.(\d+)\.cross_attention\.out", r"encoder.layer.\1.crossattention.output.dense"),
    (r"blocks\.(\d+)\.self_attention", r"encoder.layer.\1.attention.INNER"),
    (r"blocks\.(\d+)\.cross_attention", r"encoder.layer.\1.crossattention.INNER"),
    (r"blocks\.(\d+)\.self_norm", r"encoder.layer.\1.attention.output.LayerNorm"),
    (r"blocks\.(\d+)\.cross_norm", r"encoder.layer.\1.crossattention.output.LayerNorm"),
    (r"blocks\.(\d+)\.mlp\.0", r"encoder.layer.\1.intermediate_query.dense"),
    (r"blocks\.(\d+)\.mlp\.2", r"encoder.layer.\1.output_query.dense"),
    (r"blocks\.(\d+)\.mlp_norm", r"encoder.layer.\1.output_query.LayerNorm"),
]
_NEMO = [
    (r"blocks\.(\d+)\.feed_forward_(\d)\.norm", r"layers.\1.norm_feed_forward\2"),
    (r"blocks\.(\d+)\.feed_forward_(\d)\.expand", r"layers.\1.feed_forward\2.linear1"),
    (r"blocks\.(\d+)\.feed_forward_(\d)\.reduce", r"layers.\1.feed_forward\2.linear2"),
    (r"blocks\.(\d+)\.attention_norm", r"layers.\1.norm_self_att"),
    (r"blocks\.(\d+)\.attention\.content_bias", r"layers.\1.self_attn.pos_bias_u"),
    (r"blocks\.(\d+)\.attention\.position_bias", r"layers.\1.self_attn.pos_bias_v"),
    (r"blocks\.(\d+)\.attention\.position", r"layers.\1.self_attn.linear_pos"),
    (r"blocks\.(\d+)\.attention\.([qkvo])\w+", lambda m: f"layers.{m[1]}.self_attn.linear_{m[2].replace('o', 'out')}"),
    (r"blocks\.(\d+)\.convolution\.norm", r"layers.\1.norm_conv"),
    (r"blocks\.(\d+)\.convolution\.expand", r"layers.\1.conv.pointwise_conv1"),
    (r"blocks\.(\d+)\.convolution\.reduce", r"layers.\1.conv.pointwise_conv2"),
    (r"blocks\.(\d+)\.convolution\.depthwise", r"layers.\1.conv.depthwise_conv"),
    (r"blocks\.(\d+)\.convolution\.batch_norm", r"layers.\1.conv.batch_norm"),
    (r"blocks\.(\d+)\.norm", r"layers.\1.norm_out"),
    (r"subsampling", "pre_encode"),
]


def make_adapter(block, num_layers=1):
    """A random adapter between the tiny encoder and LLM."""
    adapter = build("adapters", block, feature_dim=DIM, num_layers=num_layers, llm_dim=DIM).eval()
    for tensor in [*adapter.parameters(), *(b for b in adapter.buffers() if b.is_floating_point())]:
        tensor.data += 0.2 * torch.rand(tensor.shape)
    return adapter


def rename(state, rules):
    """Apply to each name the first rule whose pattern matches its beginning."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            new, count = re.subn("^" + pattern, replacement, name)
            if count:
                break
        assert count, name
        renamed[new] = tensor.clone()
    return renamed


def slam_linear(adapter):
    state = dict(adapter.state_dict())
    if "conv.weight" in state:
        weight = state["conv.weight"]
        state["conv.weight"] = weight.unflatten(1, (adapter.stride, -1)).permute(0, 2, 1)
    names = [("conv", "conv1d"), ("stacked", "linear1"), ("projection", "linear2")]
    return rename(state, [(ours, f"encoder_projector.{theirs}") for ours, theirs in names])


def slam_qformer(adapter):
    state = dict(adapter.state_dict())
    state["query"] = state["query"][None]
    blocks = [(ours, f"encoder_projector.qformer.{theirs}".replace("INNER", "attention")) for ours, theirs in _BLOCKS]
    rest = [("query_norm", "qformer.layernorm"), ("query", "query"), ("linear", "linear"), ("norm", "norm")]
    return rename(state, blocks + [(ours, f"encoder_projector.{theirs}") for ours, theirs in rest])


def salmonn(adapter):
    state = dict(adapter.state_dict())
    state["query"] = state["query"][None]
    blocks = [(ours, f"speech_Qformer.bert.{theirs}".replace("INNER", "self")) for ours, theirs in _BLOCKS]
    rest = [
        (r"stream_norms\.0", "ln_speech"),
        (r"stream_norms\.1", "ln_audio"),
        ("query_norm", "speech_Qformer.bert.embeddings.LayerNorm"),
        ("query", "speech_query_tokens"),
        ("projection", "speech_llama_proj"),
    ]
    return rename(state, blocks + rest)


def nemo(adapter):
    state = dict(adapter.state_dict())
    for name in state:
        if re.search(r"convolution\.(expand|reduce)\.weight", name):
            state[name] = state[name][..., None]
    rules = [
        (ours, theirs) if callable(theirs) else (ours, f"perception.modality_adapter.{theirs}")
        for ours, theirs in _NEMO
    ] + [("projection", "perception.proj")]
    renamed = rename(state, rules)
    return {n if n.startswith("perception.") else f"perception.modality_adapter.{n}": t for n, t in renamed.items()}


def ltu_as(adapter, tltr="0.at_model.", projection="1.proj"):
    rules = [(rf"{kind}_block\.{part}", f"{tltr}{kind}_tr.attn.{part}") for kind in ("time", "layer")
             for part in ("query", "key", "value", "out")]  # fmt: skip
    for kind in ("time", "layer"):
        for ours, theirs in (("attention_norm", "attn_ln"), ("mlp_norm", "mlp_ln"), ("mlp", "mlp")):
            rules.append((rf"{kind}_block\.{ours}", f"{tltr}{kind}_tr.{theirs}"))
    return rename(adapter.state_dict(), [*rules, ("projection", projection)])
