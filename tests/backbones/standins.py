"""Writers of tiny published models: CTranslate2 files, GGUF files, and wheels that contain them."""

import json
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from audiolm_lite.storage.hashes import sha256_of
from tests import tiny

# The tokens that Whisper's tokenizer adds; the tiny one has the bytes besides.
WHISPER_TOKENS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>", "<|startofprev|>",
                  "<|transcribe|>", "<|translate|>")  # fmt: skip
MERGED = ("Ġ1", "12", "hi")  # tokens of two bytes of the LLM's tokenizer
CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
_CT2_DTYPES = {np.dtype("<f4"): 0, np.dtype("<i1"): 1, np.dtype("<i2"): 2, np.dtype("<f2"): 4}


def whisper(seed: int = 0) -> WhisperForConditionalGeneration:
    """A tiny Whisper in float16, encoder and decoder, for the tokenizer of `write_ctranslate2`."""
    torch.manual_seed(seed)
    entries = {**tiny.WHISPER, **tiny.WHISPER_DECODER, "vocab_size": 256 + len(WHISPER_TOKENS)}
    model = WhisperForConditionalGeneration(WhisperConfig(**entries))
    tiny.draw_weights(model, 0.3)
    return model.half()


def arrays_of(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The arrays that CTranslate2 stores for a Whisper model."""
    state = {name.removeprefix("model."): tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    arrays = {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}
    for conv in ("conv1", "conv2"):
        arrays |= {f"encoder/{conv}/{part}": state[f"encoder.{conv}.{part}"] for part in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        arrays[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        arrays[f"{side}/num_heads"] = np.array(model.config.encoder_attention_heads, "<i2")
        arrays |= _norm(state, f"{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(getattr(model.config, f"{side}_layers")):
            old, new = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            arrays |= _norm(state, f"{old}.self_attn_layer_norm", f"{new}/self_attention/layer_norm")
            arrays |= _norm(state, f"{old}.final_layer_norm", f"{new}/ffn/layer_norm")
            linears = {
                "self_attention/linear_0": [f"self_attn.{part}_proj" for part in "qkv"],
                "self_attention/linear_1": ["self_attn.out_proj"],
                "ffn/linear_0": ["fc1"],
                "ffn/linear_1": ["fc2"],
            }
            if side == "decoder":
                arrays |= _norm(state, f"{old}.encoder_attn_layer_norm", f"{new}/attention/layer_norm")
                linears |= {
                    "attention/linear_0": ["encoder_attn.q_proj"],
                    "attention/linear_1": [f"encoder_attn.{part}_proj" for part in "kv"],
                    "attention/linear_2": ["encoder_attn.out_proj"],
                }
            for name, parts in linears.items():
                weights = [state[f"{old}.{part}.weight"] for part in parts]
                # Whisper's keys have no bias
                biases = [state.get(f"{old}.{part}.bias", np.zeros(len(w), "<f2")) for part, w in zip(parts, weights)]
                arrays[f"{new}/{name}/weight"] = np.concatenate(weights)
                arrays[f"{new}/{name}/bias"] = np.concatenate(biases)
    settings = {"pre_norm": 1, "activation": 3, "alibi": 0, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    return arrays | {f"decoder/{name}": np.array(value, "<i1") for name, value in settings.items()}


def _norm(state: dict, old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}/gamma": state[f"{old}.weight"], f"{new}/beta": state[f"{old}.bias"]}


def write_ctranslate2(folder: Path, arrays: dict[str, np.ndarray], version: int = 6) -> None:
    """Write `model.bin` with these arrays and the alias of the output layer, and its tokenizer and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", _CT2_DTYPES[array.dtype], array.nbytes) + array.tobytes()
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    (folder / "model.bin").write_bytes(data + struct.pack("<I", 1) + alias)
    tokenizer = tiny.byte_tokenizer(WHISPER_TOKENS).backend_tokenizer
    tokenizer.add_special_tokens(list(WHISPER_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"suppress_ids": [1, 5], "suppress_ids_begin": [9], "alignment_heads": [[0, 1]], "lang_ids": [2]}
    (folder / "config.json").write_text(json.dumps(config))


def llm(seed: int = 0) -> torch.nn.Module:
    """A tiny Llama with grouped keys and tied embeddings, whose weights bfloat16 represents."""
    entries = {**tiny.GROUPED, "head_dim": 8, "intermediate_size": 64, "tie_word_embeddings": True, "bos_token_id": 0}
    return tiny.tiny_llm(258 + len(MERGED), seed, max_position_embeddings=64, **entries).bfloat16()


def write_gguf(
    path: Path, model: torch.nn.Module, kind: str = "F32", extra: tuple[str, ...] = (), changes: dict | None = None
) -> None:
    """Write a Llama as llama.cpp does, matrices in the dtype `kind`.

    `extra` names further tensors, `changes` has texts that replace entries, or None for an entry to leave out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*tiny.byte_tokenizer(("<s>", "</s>")).convert_ids_to_tokens(range(258)), *MERGED]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + (len(tokens) - 2) * [1])
    writer.add_token_merges([" ".join(token) for token in MERGED])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates adjacent pairs, transformers the halves of a head
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        quantised = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(_gguf_name(name), gguf.quantize(array, quantised), raw_dtype=quantised)
    for name in extra:
        writer.add_tensor(name, np.zeros(32, "<f4"))
    for name, value in (changes or {}).items():
        writer.kv_data[0].pop(name, None)
        if value is not None:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.o_proj": "attn_output", "_proj": "", "self_attn.": "attn_", "mlp.": "ffn_"}  # fmt: skip
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def write_wheel(folder: Path, project: str, files: dict[str, bytes]) -> tuple[Path, str]:
    """Write a wheel that pip accepts, version 1.0; returns it and its SHA-256. Importing it would fail."""
    folder.mkdir(parents=True, exist_ok=True)
    package = project.replace("-", "_")
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('imported')")
        for name, content in files.items():
            archive.writestr(f"{package}/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path, sha256_of(path)
