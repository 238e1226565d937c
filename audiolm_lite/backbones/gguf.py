"""A GGUF file of a Llama-shaped LLM to a folder of transformers' LlamaForCausalLM in bfloat16, with its tokenizer.

The package `gguf` reads the file and dequantises its tensors. transformers can read such files too, but counts the
result as quantised, skips tensors that it does not know, and drops the rule that splits numbers into digits.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from audiolm_lite.backbones.known import WEIGHTS
from audiolm_lite.backbones.tensor_report import ConversionError, TensorStatus, compare, require_complete
from audiolm_lite.backbones.untrusted import check_sizes
from audiolm_lite.config.errors import describe

_RULES = [
    (r"token_embd\.weight", "model.embed_tokens.weight"),
    (r"output_norm\.weight", "model.norm.weight"),
    (r"output\.weight", "lm_head.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blk\.(\d+)\.attn_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"blk\.(\d+)\.attn_output\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight"),
]
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens


def convert(source: Path, folder: Path) -> list[TensorStatus]:
    """Convert an LLM of the architecture "llama" with a byte-level BPE tokenizer.

    Parameters
    ----------
    source : Path
        The file, or a folder with one `*.gguf`.
    folder : Path
        Existing folder to write to.

    Returns
    -------
    list of TensorStatus
        What happened to each tensor.

    Raises
    ------
    ConversionError
        The file is missing or damaged, its architecture or tokenizer is not supported, or a tensor is missing,
        misshapen or unexpected.
    """
    files = sorted(source.glob("*.gguf")) if source.is_dir() else [source]
    if len(files) != 1 or not files[0].is_file():
        raise ConversionError(f"contains {len(files)} files *.gguf; give the path of one file")
    try:
        reader = gguf.GGUFReader(files[0])
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the reader trusts the numbers of its file
        problem = describe(error)
        raise ConversionError(f"{files[0].name}: not a GGUF file, or damaged ({problem}); download it again") from error
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    try:
        config = _config(fields, tied)
        check_sizes(files[0].name, config.to_dict())
        tokenizer = _tokenizer(fields)
    except KeyError as error:
        raise ConversionError(f"{files[0].name}: no entry {error.args[0]!r}; download the file again") from error

    state: dict[str, Tensor] = {}
    report: list[TensorStatus] = []
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for tensor in reader.tensors:
        name, new = tensor.name, _new_name(tensor.name)
        if new is None:
            report.append(TensorStatus(name, "unexpected", "no tensor of a plain Llama"))
            continue
        weights = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if match := re.search(r"attn_([qk])\.weight", name):
            weights = _halves(weights, heads[match[1]])
        state[new] = weights.to(torch.bfloat16).contiguous()
        report.append(TensorStatus(name, "used", f"{new} (from {tensor.tensor_type.name})"))
    with torch.device("meta"):
        expected = transformers.LlamaForCausalLM(config).state_dict()
    compare(report, state, {name: t for name, t in expected.items() if not (tied and name == "lm_head.weight")})
    require_complete(report)

    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    transformers.GenerationConfig(**special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return report


def _new_name(name: str) -> str | None:
    for pattern, new in _RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(new)
    return None


def _halves(weights: Tensor, heads: int) -> Tensor:
    """Order the rows of q and k [H, D] as transformers: a rotation's pairs are halves of a head, in GGUF adjacent."""
    return weights.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(fields: Mapping[str, Any], tied: bool) -> transformers.LlamaConfig:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise ConversionError(f"architecture {architecture!r}; only llama is supported. Use the model's own repository")
    if (scaling := fields.get("llama.rope.scaling.type", "none")) != "none" or fields.get("llama.expert_count"):
        raise ConversionError(f"experts, or rotary positions with scaling {scaling!r}, are not supported")
    heads = fields["llama.attention.head_count"]
    return transformers.LlamaConfig(
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.rope.dimension_count"),
        max_position_embeddings=fields["llama.context_length"],
        rope_theta=fields.get("llama.rope.freq_base", 10000.0),
        # Stored as float32; seven digits give back the published number.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        tie_word_embeddings=tied,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def _tokenizer(fields: Mapping[str, Any]) -> transformers.PreTrainedTokenizerFast:
    # How text is split before BPE, by the name that the file gives.
    splits: dict[str, list[Any]] = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }
    kind, split = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in splits:
        raise ConversionError(
            f"its tokenizer is {kind!r} with the splits of {split!r}; only gpt2 with {', '.join(splits)} is supported. "
            "Use the model's own repository"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits[split])
    backend.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if type_ == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif type_ == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    special = {
        f"{new}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for name, new in names.items()
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )
