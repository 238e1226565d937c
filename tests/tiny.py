"""Tiny models and tokenizers with random weights, from which the tests build everything larger.

Functions called `tiny_*` return a model; functions called `save_*` write a folder or file in the published format.
`entries` are entries of the model's configuration in transformers, and replace the sizes listed here. Weights come from
the current random state, or after `torch.manual_seed(seed)` where a seed is given.
"""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperTokenizer,
)

from audiolm_lite.encoders.beats import BEATsEncoder

# Sizes of LLMs. The weights spread the logits, so that rounding cannot decide between near ties.
LLM = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
# Changes of these sizes: a wider LLM, in which two heads share their keys and values.
GROUPED = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}

# LLMs of today, as entries of their configurations next to GROUPED: scaled and capped logits, sliding windows, sinks,
# and recurrent layers. None of their defaults would fit a tiny vocabulary.
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
_WINDOW = {**_IDS, "head_dim": 8, "sliding_window": 4, "num_hidden_layers": 3}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_GRANITE = {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
ATTENTION_LLMS: dict[str, dict[str, Any]] = {
    "granite": {**_IDS, **_GRANITE},
    "cohere": {**_IDS, "logit_scale": 0.25},
    "cohere2": {**_WINDOW, **_ALTERNATING, "logit_scale": 0.25},
    "gemma": {**_IDS, "head_dim": 8},
    "gemma2": {
        **_WINDOW,
        **_ALTERNATING,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_WINDOW, **_ALTERNATING, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "mistral": _WINDOW,
    "qwen2": {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "gpt_oss": {**_WINDOW, **_ALTERNATING, **_EXPERTS},
    "olmo3": {**_WINDOW, **_ALTERNATING},
    "deepseek_v3": {  # keys of another size than values
        **_IDS,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "first_k_dense_replace": 4,
    },
}
RECURRENT_LLMS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**_WINDOW, **_DELTA},
    "qwen3_next": {**_WINDOW, **_DELTA, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
    "lfm2": {**_IDS, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "falcon_h1": {**_IDS, **_MAMBA, "mamba_d_ssm": 64, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.3},
    "granitemoehybrid": {
        **_IDS,
        **_GRANITE,
        **_EXPERTS,
        **_MAMBA,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
}

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

# Whisper's encoder for 2 s of audio, and the decoder that belongs to it.
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 20,
    "max_source_positions": 100,
}
WHISPER_DECODER = {
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}

# wav2vec 2.0, HuBERT and WavLM with frames of 20 ms, normalised as in their large models.
SSL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 8, 8],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}

BEATS = {
    "embed_dim": 8,
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
    "conv_pos": 4,
    "conv_pos_groups": 2,
}

# Entries of an encoder block: an ECAPA-TDNN.
SPEAKER = {
    "channels": [16, 16, 16, 48],
    "kernel_sizes": [5, 3, 3, 1],
    "dilations": [1, 2, 3, 1],
    "attention_channels": 8,
    "embedding_dim": 12,
    "mels": 20,
}

VOXTRAL_AUDIO = {
    "hidden_size": 8,
    "intermediate_size": 32,  # 4 frames, as published
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
VOXTRAL_SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[AUDIO]", "[TRANSCRIBE]"]


def _set_seed(seed: int | None) -> None:
    """Set torch's random state, unless the seed is None."""
    if seed is not None:
        torch.manual_seed(seed)


def draw_weights(module: nn.Module, std: float) -> None:
    """Replace all weights by normal ones: default initialisation leaves biases and attention scores near zero."""
    for parameter in module.parameters():
        parameter.data.normal_(0, std)


def word_tokenizer(words: list[str], unk_token: str = "<unk>", **special: str) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per word, whose id is the word's index; `special` names the special tokens."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk_token))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unk_token, **special)


def byte_tokenizer(first: tuple[str, ...] = (), **special: str) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per byte, for any text.

    The tokens `first` precede the bytes; those in `special` that are not among them follow the bytes.
    """
    pieces = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny_llm(vocabulary: int, seed: int | None = None, kind: str = "llama", **entries: Any) -> PreTrainedModel:
    """A causal LM of the model type `kind`."""
    _set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**LLM, "vocab_size": vocabulary, **entries}))


def tiny_family(kind: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """A causal LM of ATTENTION_LLMS or RECURRENT_LLMS, whose attention is far from uniform, so that masks matter."""
    llm = tiny_llm(vocabulary, seed, kind, **{**GROUPED, **(ATTENTION_LLMS | RECURRENT_LLMS)[kind]})
    for parameter in llm.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.3 * parameter.shape[-1] ** -0.5)
    return llm.eval()


def tiny_bert(vocabulary: int, seed: int | None = None, **entries: Any) -> BertModel:
    """An embedding model."""
    _set_seed(seed)
    return BertModel(BertConfig(**{**BERT, "vocab_size": vocabulary, **entries}))


def tiny_whisper(seed: int | None = None, **entries: Any) -> WhisperModel:
    """A Whisper, by default with positions for 2 s of audio."""
    _set_seed(seed)
    return WhisperModel(WhisperConfig(**{**WHISPER, **WHISPER_DECODER, **entries}))


def save_whisper(
    folder: Path,
    mels: int = 20,
    seconds: int = 2,
    hop: int = 160,
    seed: int | None = None,
    encoder_std: float | None = None,
    **entries: Any,
) -> WhisperModel:
    """Write the folder of a Whisper for `seconds` of audio; `encoder_std` is that of `draw_weights`."""
    sizes = {"num_mel_bins": mels, "max_source_positions": seconds * 16000 // (2 * hop)}
    model = tiny_whisper(seed, **sizes, **entries)
    if encoder_std is not None:
        draw_weights(model.encoder, encoder_std)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, hop_length=hop, chunk_length=seconds).save_pretrained(folder)
    return model


def save_ssl(
    folder: Path,
    kind: str,
    normalize: bool = True,
    seed: int | None = None,
    std: float | None = None,
    **entries: Any,
) -> PreTrainedModel:
    """Write the folder of a wav2vec2, hubert or wavlm; `std` is that of `draw_weights`."""
    _set_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**SSL, **entries}))
    if std is not None:
        draw_weights(model, std)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True).save_pretrained(folder)
    return model


def save_beats(file: Path) -> None:
    """Write a checkpoint in the published format: with its configuration, and the position table of each block."""
    state = BEATsEncoder(BEATS).state_dict()
    table = state.pop("position_bias.weight")
    tables = {f"encoder.layers.{n}.self_attn.relative_attention_bias.weight": table for n in range(2)}
    torch.save({"cfg": BEATS, "model": state | tables}, file)


def tiny_voxtral(
    vocabulary: int, mels: int, positions: int, seed: int | None = None, **entries: Any
) -> VoxtralForConditionalGeneration:
    """A Voxtral whose encoder has `positions` frames; `entries` are those of its LLM."""
    _set_seed(seed)
    text = {"model_type": "llama", **LLM, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.02}
    config = VoxtralConfig(
        audio_config={**VOXTRAL_AUDIO, "num_mel_bins": mels, "max_source_positions": positions},
        text_config={**text, "vocab_size": vocabulary, **entries},
        audio_token_id=VOXTRAL_SPECIAL.index("[AUDIO]"),
    )
    return VoxtralForConditionalGeneration(config)


def save_gemma3(folder: Path, **entries: Any) -> PreTrainedModel:
    """Write the folder of a Gemma 3 with a vision tower; `entries` are those of its LLM."""
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vision |= {"hidden_size": 8, "intermediate_size": 8}
    _set_seed(0)
    config = Gemma3Config(text_config=entries, vision_config=vision, mm_tokens_per_image=4, image_token_id=1)
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model.eval()


def save_voxtral(folder: Path, mels: int, seconds: int, seed: int | None = None, **entries: Any) -> None:
    """Write the folder of a Voxtral for `seconds` of audio; the vocabulary of its tekken.json is the bytes."""
    special = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(VOXTRAL_SPECIAL)]
    vocabulary = 256 + len(special)
    tiny_voxtral(vocabulary, mels, 50 * seconds, seed, **entries).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(folder)
    codes = [base64.b64encode(bytes([i])).decode() for i in range(256)]
    settings = {
        "pattern": r"[^\s]+|\s+",
        "num_vocab_tokens": 256,
        "default_vocab_size": vocabulary,
        "default_num_special_tokens": len(special),
        "version": "v11",
    }
    tekken = {
        "config": settings,
        "vocab": [{"rank": i, "token_bytes": code, "token_str": None} for i, code in enumerate(codes)],
        "special_tokens": special,
    }
    (folder / "tekken.json").write_text(json.dumps(tekken))


def save_recognizer(folder: Path, languages: tuple[str, ...] = (), **sizes: Any) -> WhisperForConditionalGeneration:
    """Write the folder of a complete Whisper for 2 s of audio, whose random transcripts differ between clips.

    `languages` are those of a multilingual model; without them, it only knows English.
    """
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    tasks = ["<|translate|>", "<|transcribe|>"]
    start, end, plain = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
    codes = [f"<|{language}|>" for language in languages]
    special = [end, start, *(codes or ["<|en|>"]), *tasks, plain]
    ids = {token: number for number, token in enumerate([*letters, *special])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: ids[token] for token in [*letters, end]}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()

    _set_seed(0)
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_target_positions": 40}
    tokens = {"vocab_size": len(ids), "pad_token_id": ids[end], "bos_token_id": ids[end], "eos_token_id": ids[end]}
    tokens |= {"decoder_start_token_id": ids[start], "suppress_tokens": None, "begin_suppress_tokens": None}
    model = WhisperForConditionalGeneration(WhisperConfig(**{**WHISPER, **decoder, **tokens, **sizes}))
    draw_weights(model, 0.4)
    model.model.decoder.embed_positions.weight.data.normal_(0, 2)  # else each token would follow itself
    readable = {"Ġ", *"abcdefghijklmnopqrstuvwxyz"}
    settings: dict[str, Any] = {
        "no_timestamps_token_id": ids[plain],
        "is_multilingual": bool(languages),
        "_from_model_config": False,  # else the other entries would be ignored
        "suppress_tokens": [number for token, number in ids.items() if token not in (*readable, end)],
        "begin_suppress_tokens": [ids["Ġ"], ids[end]],
    }
    if languages:
        settings["lang_to_id"] = {code: ids[code] for code in codes}
        settings["task_to_id"] = {task.strip("<|>"): ids[task] for task in tasks}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    mels, seconds = model.config.num_mel_bins, model.config.max_source_positions * 320 // 16000
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(folder)
    return model.eval()


class Code:
    """A pickle that touches the file `marker` when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)
