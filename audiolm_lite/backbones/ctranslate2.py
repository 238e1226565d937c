"""CTranslate2's `model.bin` of a Whisper model to a folder of transformers' WhisperForConditionalGeneration.

The file is a list of named arrays (source: CTranslate2, `python/ctranslate2/specs/model_spec.py`, binary version 6):

    uint32 version; string name; uint32 revision; uint32 count
    count x { string name; uint8 rank; uint32 dimension x rank; uint8 type; uint32 bytes; data }
    uint32 aliases; aliases x { string alias; string name }

A string is a uint16 length and that many bytes, the last of which is zero. All numbers are little endian.
"""

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.backbones.known import WEIGHTS
from audiolm_lite.backbones.tensor_report import ConversionError, TensorStatus, compare, require_complete
from audiolm_lite.backbones.untrusted import read_json

FILE = "model.bin"
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_VERSION = 6
_POSITIONS = 50  # of the encoder, per second
_MULTILINGUAL = 51865  # smallest vocabulary of Whisper with languages and tasks

# Settings that the file stores as arrays -> the value that Whisper has; None: any, because it is read elsewhere or
# describes no computation.
_SETTINGS = {
    "num_heads": None,
    "alignment_heads": None,
    "alignment_layer": None,
    "activation": 3,  # GELU
    "pre_norm": 1,
    "alibi": 0,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
_PARTS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_BLOCK = r"(encoder|decoder)/layer_(\d+)/"
_NEW_BLOCK = r"model.\1.layers.\2."
# Pattern of an array's name without its last part -> new names of its equal parts, joined by "|".
_RULES = [
    (r"encoder/(conv[12])", r"model.encoder.\1"),
    (r"(encoder|decoder)/layer_norm", r"model.\1.layer_norm"),
    (r"decoder/embeddings", "model.decoder.embed_tokens"),
    (_BLOCK + "self_attention/layer_norm", _NEW_BLOCK + "self_attn_layer_norm"),
    (_BLOCK + "self_attention/linear_0", "|".join(f"{_NEW_BLOCK}self_attn.{part}_proj" for part in "qkv")),
    (_BLOCK + "self_attention/linear_1", _NEW_BLOCK + "self_attn.out_proj"),
    (_BLOCK + "attention/layer_norm", _NEW_BLOCK + "encoder_attn_layer_norm"),
    (_BLOCK + "attention/linear_0", _NEW_BLOCK + "encoder_attn.q_proj"),
    (_BLOCK + "attention/linear_1", "|".join(f"{_NEW_BLOCK}encoder_attn.{part}_proj" for part in "kv")),
    (_BLOCK + "attention/linear_2", _NEW_BLOCK + "encoder_attn.out_proj"),
    (_BLOCK + "ffn/layer_norm", _NEW_BLOCK + "final_layer_norm"),
    (_BLOCK + "ffn/linear_0", _NEW_BLOCK + "fc1"),
    (_BLOCK + "ffn/linear_1", _NEW_BLOCK + "fc2"),
]


class _Reader:
    """Read numbers and strings one after the other; a read past the end is a damaged file."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0
        self.data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        if self.position + size > len(self.data):
            raise ConversionError(
                f"{self.path.name}: ends after {len(self.data)} bytes, inside an array; download it again"
            )
        begin, self.position = self.position, self.position + size
        return self.data[begin : self.position]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", bytes(self.take(struct.calcsize(kind))))[0]

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", "replace")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read every array of a CTranslate2 file.

    Parameters
    ----------
    path : Path
        A `model.bin`.

    Returns
    -------
    dict of str to Tensor
        In the dtypes of the file. An alias is the array that it names.

    Raises
    ------
    ConversionError
        Another version of the format, an unknown dtype, or a damaged file.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "model.bin"
    >>> name = lambda text: struct.pack("<H", len(text) + 1) + text + bytes(1)
    >>> array = name(b"encoder/num_heads") + struct.pack("<BBIh", 0, 2, 2, 6)
    >>> _ = path.write_bytes(struct.pack("<I", 6) + name(b"WhisperSpec") + struct.pack("<II", 3, 1) + array + bytes(4))
    >>> read_arrays(path)
    {'encoder/num_heads': tensor(6, dtype=torch.int16)}
    """
    reader = _Reader(path)
    version = reader.number("I")
    if version != _VERSION:
        raise ConversionError(
            f"{path.name}: version {version} of CTranslate2's format, but version {_VERSION} is supported; convert the "
            "model with a current CTranslate2"
        )
    reader.string()
    reader.number("I")
    arrays: dict[str, Tensor] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        if kind not in _DTYPES:
            raise ConversionError(
                f"{path.name}: {name} has the unknown dtype {kind}; convert the model to float16 first"
            )
        dtype = np.dtype(_DTYPES[kind])
        if size != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise ConversionError(f"{path.name}: {name} has {size} bytes for the shape {shape}; download it again")
        arrays[name] = torch.from_numpy(reader.take(size).copy().view(dtype).reshape(shape))
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        if name not in arrays:
            raise ConversionError(
                f"{path.name}: alias {alias} names {name}, which is not in the file; download it again"
            )
        arrays[alias] = arrays[name]
    return arrays


def rename_whisper(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[TensorStatus]]:
    """Name the arrays of a Whisper model as transformers does.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        From `read_arrays`.

    Returns
    -------
    state : dict of str to Tensor
        State dict of WhisperForConditionalGeneration without `proj_out.weight`, which is tied to the embeddings.
    report : list of TensorStatus
        Every array of the file: used, ignored or unexpected.

    Examples
    --------
    >>> arrays = {"decoder/layer_0/attention/linear_1/bias": torch.tensor([0.0, 0.0, 1.0, 2.0]), "step": torch.ones(1)}
    >>> state, report = rename_whisper(arrays)
    >>> state
    {'model.decoder.layers.0.encoder_attn.v_proj.bias': tensor([1., 2.])}
    >>> [tensor.status for tensor in report]
    ['used', 'unexpected']
    """
    state: dict[str, Tensor] = {}
    report: list[TensorStatus] = []
    for name, tensor in sorted(arrays.items()):
        stem, _, part = name.rpartition("/")
        if part in _SETTINGS:
            report.append(_setting(name, tensor, _SETTINGS[part]))
            continue
        if name == "decoder/projection/weight":
            tied = tensor.equal(arrays.get("decoder/embeddings/weight", torch.empty(0)))
            note = "tied to the decoder's embeddings" if tied else "differs from the decoder's embeddings"
            report.append(TensorStatus(name, "ignored" if tied else "unexpected", note))
            continue
        names = _new_names(name, stem, part)
        if not names:
            note = "8-bit weights; convert the model to float16" if part == "weight_scale" else "not a part of Whisper"
            report.append(TensorStatus(name, "unexpected", note))
            continue
        for new, value in zip(names, tensor.chunk(len(names))):
            if not new.endswith("k_proj.bias"):
                state[new] = value.contiguous()
            elif value.count_nonzero():  # Whisper's keys have no bias; CTranslate2 stores zeros
                report.append(TensorStatus(name, "unexpected", f"{new} is not zero"))
        report.append(TensorStatus(name, "used", ", ".join(names)))
    return state, report


def _setting(name: str, value: Tensor, required: int | None) -> TensorStatus:
    if required is None or (value.numel() == 1 and int(value) == required):
        return TensorStatus(name, "ignored", "a setting")
    return TensorStatus(name, "unexpected", f"is {value.tolist()}, but {required} in Whisper")


def _new_names(name: str, stem: str, part: str) -> list[str]:
    if match := re.fullmatch(r"(encoder|decoder)/position_encodings/encodings", name):
        return [f"model.{match[1]}.embed_positions.weight"]
    for pattern, names in _RULES:
        if part in _PARTS and (match := re.fullmatch(pattern, stem)):
            return [f"{new}.{_PARTS[part]}" for new in match.expand(names).split("|")]
    return []


def convert(source: Path, folder: Path) -> list[TensorStatus]:
    """Convert a Whisper model, encoder and decoder, with its tokenizer.

    Parameters
    ----------
    source : Path
        A `model.bin` or its folder, which must also contain `tokenizer.json`. The suppressed tokens and the alignment
        heads are those of the `config.json` that CTranslate2 writes; without the file there are none.
    folder : Path
        Existing folder to write to.

    Returns
    -------
    list of TensorStatus
        What happened to each tensor.

    Raises
    ------
    ConversionError
        A file is missing or damaged, or a tensor is missing, misshapen or unexpected.
    """
    path = source / FILE if source.is_dir() else source
    for file in (path, path.with_name("tokenizer.json")):
        if not file.is_file():
            raise ConversionError(
                f"{file.name}: no such file; give the folder of a CTranslate2 model with its tokenizer"
            )
    arrays = read_arrays(path)
    state, report = rename_whisper(arrays)
    try:
        config = _config(state, arrays)
    except KeyError as error:
        raise ConversionError(f"{path.name}: no array {error.args[0]}; this is not a Whisper model", report) from error
    tokenizer = transformers.WhisperTokenizerFast(tokenizer_file=str(path.with_name("tokenizer.json")))
    generation = _generation(path.with_name("config.json"), tokenizer, config)
    config |= {name: generation[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config["decoder_start_token_id"] = generation["decoder_start_token_id"]
    dtype = str(state["model.encoder.conv1.weight"].dtype).removeprefix("torch.")
    model_config = transformers.WhisperConfig(
        **config,
        begin_suppress_tokens=None,  # they are in generation_config.json
        architectures=["WhisperForConditionalGeneration"],
        dtype=dtype,
    )
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(model_config)
    compare(report, state, {name: t for name, t in model.state_dict().items() if name != "proj_out.weight"})
    require_complete(report)

    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    model_config.save_pretrained(folder)
    transformers.GenerationConfig(**generation).save_pretrained(folder)
    seconds = config["max_source_positions"] // _POSITIONS
    extractor = transformers.WhisperFeatureExtractor(feature_size=config["num_mel_bins"], chunk_length=seconds)
    extractor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return report


def _config(state: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of a Whisper model, from the shapes of its tensors and the numbers of heads in the file."""
    config: dict[str, Any] = {
        "d_model": state["model.encoder.conv1.weight"].shape[0],
        "num_mel_bins": state["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": state["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": state["model.decoder.embed_positions.weight"].shape[0],
        "vocab_size": state["model.decoder.embed_tokens.weight"].shape[0],
    }
    for side in ("encoder", "decoder"):
        layers = {name.split(".")[3] for name in state if name.startswith(f"model.{side}.layers.")}
        config[f"{side}_layers"] = len(layers)
        config[f"{side}_attention_heads"] = int(arrays[f"{side}/num_heads"])
        config[f"{side}_ffn_dim"] = state[f"model.{side}.layers.0.fc1.weight"].shape[0]
    return config


def _generation(
    file: Path, tokenizer: transformers.PreTrainedTokenizerBase, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Entries of generation_config.json, as openai publishes them with its models."""
    published = read_json(file) if file.is_file() else {}
    vocabulary = tokenizer.get_vocab()
    token = {
        name: vocabulary.get(f"<|{name}|>")
        for name in ("startoftranscript", "endoftext", "notimestamps", "startofprev", "transcribe", "translate")
    }
    for name in ("startoftranscript", "endoftext", "notimestamps"):
        if token[name] is None:
            raise ConversionError(f"tokenizer.json: no token <|{name}|>; it is not Whisper's")
    multilingual = config["vocab_size"] >= _MULTILINGUAL
    entries = {
        "bos_token_id": token["startoftranscript"],
        "decoder_start_token_id": token["startoftranscript"],
        "eos_token_id": token["endoftext"],
        "pad_token_id": token["endoftext"],
        "no_timestamps_token_id": token["notimestamps"],
        "prev_sot_token_id": token["startofprev"],
        "suppress_tokens": published.get("suppress_ids"),
        "begin_suppress_tokens": published.get("suppress_ids_begin"),
        "alignment_heads": published.get("alignment_heads"),
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"],
        "return_timestamps": False,
    }
    if multilingual:
        languages = published.get("lang_ids") or []
        entries["lang_to_id"] = dict(zip(tokenizer.convert_ids_to_tokens(languages), languages))
        entries["task_to_id"] = {task: token[task] for task in ("transcribe", "translate")}
    return entries
