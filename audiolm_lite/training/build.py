"""Builds the model, its datasets and the feature store from the keys of a YAML file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.audio.long_audio import LongAudio
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.registry import build, check_arguments, with_defaults
from audiolm_lite.data.augmentation import Augmentation
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import UNREADABLE, AudioTextDataset
from audiolm_lite.data.length_limit import LengthLimit
from audiolm_lite.data.mixing import temperature_weights
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.decoding.state import check_decoding
from audiolm_lite.distributed import processes
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import read_header
from audiolm_lite.hub.save import check_answer_settings
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.attention import MATMUL, prefers_matmul, set_attention
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.llm_layers import is_recurrent
from audiolm_lite.modeling.transformer_blocks import checkpoint_activations, compile_blocks
from audiolm_lite.training.encoder_weights import require_same_weights
from audiolm_lite.training.trainable import audio_token_rate, select_trainable

logger = logging.getLogger(__name__)


def build_model(hparams: Mapping[str, Any]) -> tuple[AudioLanguageModel, PreTrainedTokenizerBase]:
    """Build the model that `encoder`, `adapter` and `llm` describe, and load the LLM's tokenizer.

    With `train_encoder` the encoder is part of the model. Otherwise it is not loaded, and the feature store contains
    the shape and the frame rate of its features.

    Raises
    ------
    ConfigError
        A block is wrong, the store was written with another encoder block, or settings exclude each other.
    """
    check_answer_settings(hparams)
    objectives = [name for name in ("distillation", "task_weights") if hparams[name] is not None]
    if objectives and hparams["loss_kernel"] != "chunked":
        raise ConfigError(
            f"loss_kernel {hparams['loss_kernel']} computes no logits, which {objectives[0]} needs: use chunked"
        )
    if len(objectives) > 1:
        raise ConfigError("distillation and task_weights exclude each other: set one of them to null")
    # under FSDP2 the first process reads the LLM and sends each process its shard; quantised weights are not sharded
    sharded = hparams["parallel"] == "fsdp" and hparams["llm"].get("quantization") is None
    llm, tokenizer = load_llm(dict(hparams["llm"]), on_meta=sharded and not processes.is_main())
    require_decoding(llm, hparams)
    if hparams["packing"] and is_recurrent(llm):
        raise ConfigError(
            "packing: the LLM has recurrent layers (linear attention or convolutions), which would read from one item "
            "into the next; set packing to false"
        )
    encoder = build("encoders", hparams["encoder"]) if hparams["train_encoder"] else None
    source = encoder if encoder is not None else open_store(hparams)
    adapter = build_adapter(
        hparams["adapter"],
        feature_dim=source.feature_dim,
        num_layers=source.num_layers,
        llm_dim=llm.get_input_embeddings().embedding_dim,
    )
    rate = audio_token_rate(adapter, frame_seconds(source))
    logger.info("The adapter outputs %.4g audio tokens per second (for a clip of 10 s)", rate)
    model = AudioLanguageModel(adapter, llm, encoder, hparams["loss_chunk"], hparams["loss_kernel"])
    if encoder is not None:
        model.long_audio = LongAudio(rule_for_long_audio(hparams), encoder, hparams["seed"])
    return model, tokenizer


def require_decoding(llm: nn.Module, hparams: Mapping[str, Any], length: int = 1) -> None:
    """Refuse an LLM that can be trained, but whose answers cannot be decoded.

    Parameters
    ----------
    llm : nn.Module
        Causal language model, with or without a PEFT wrapper.
    hparams : mapping
        `llm`, for the message.
    length : int
        Tokens of the longest row that is to be answered, such as in validation.

    Raises
    ------
    ConfigError
        Decoding does not support the LLM, or not at this length.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=64, **sizes))
    >>> require_decoding(llm, {"llm": {"source": "owner/llm"}}, length=65)
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: llm: owner/llm cannot answer after training: LlamaConfig: max_length 65 ...
    """
    try:
        check_decoding(llm, length)
    except ValueError as error:
        raise ConfigError(
            f"llm: {hparams['llm']['source']} cannot answer after training: {error}. Choose another LLM or, if the "
            "length is the reason, shorter rows (max_tokens)"
        ) from error


def configure_model(model: AudioLanguageModel, hparams: Mapping[str, Any], device: str = "cpu") -> None:
    """Select the parameters that train, and set up attention, compilation and activation checkpointing.

    Parameters
    ----------
    model : AudioLanguageModel
        The model, on any device.
    hparams : mapping
        `precision` is resolved, so not "auto".
    device : str
        Where the model will train.

    Raises
    ------
    ConfigError
        A pattern of `trainable` is wrong, the LLM does not support the attention, or the device does not compile.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = AudioLanguageModel(nn.Linear(8, 8), LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)))
    >>> speed = {"precision": "fp32", "attention": None, "compile": False, "gradient_checkpointing": 0}
    >>> configure_model(model, {"trainable": ["adapter.*"], **speed})
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['adapter.weight', 'adapter.bias']
    """
    if hparams["compile"] and torch.device(device).type not in ("cpu", "cuda"):
        raise ConfigError(f"compile is for the CPU and CUDA, not for {device}: set it to false")
    select_trainable(model, hparams["trainable"])
    attention = hparams["attention"]
    if attention is None and prefers_matmul(model.llm, device, hparams["precision"]):
        attention = MATMUL
    if attention is not None:
        set_attention(model.llm, attention)
    for part in filter(None, (model.encoder, model.llm)):
        if hparams["compile"]:
            compile_blocks(part)
        if hparams["gradient_checkpointing"]:
            checkpoint_activations(part, hparams["gradient_checkpointing"])


def build_dataset(
    hparams: Mapping[str, Any],
    split: str,
    model: AudioLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
) -> AudioTextDataset:
    """Build the dataset of `manifests[split]`: stored features, or waveforms where the model has an encoder.

    The manifests of "train" may be mixed, by weights in their list or by `mixing_temperature`.

    Raises
    ------
    ConfigError
        The split has no manifests, its entries are wrong, or weights and a temperature exclude each other.
    """
    entries = hparams["manifests"].get(split)
    if not entries:
        raise ConfigError(f"manifests: no list of files under {split!r}; the YAML file has {hparams['manifests']}")
    manifests, weights = split_entries(entries)
    temperature = hparams["mixing_temperature"] if split == "train" else None
    if weights and (split != "train" or temperature is not None):
        raise ConfigError(
            f"manifests.{split} has weights: only train may have them, and only without mixing_temperature"
        )
    seed, question_files = hparams["seed"], (hparams["question_files"] or {}).get(split)
    num_frames = None if model.encoder is None else (model.long_audio or model.encoder).num_frames
    augmentation = None
    if split == "train" and hparams["augmentation"] is not None:
        augmentation = Augmentation(hparams["augmentation"], seed, num_frames)
    questions = None if question_files is None else Questions(question_files, len(manifests), seed)
    dataset = AudioTextDataset(
        select_rows(manifests, hparams["tasks"], questions=questions),
        FeatureSource(open_store(hparams)) if num_frames is None else WaveformSource(num_frames, model.long_audio),
        PromptBuilder(PromptTemplate(hparams["template"]), tokenizer, model.adapter.num_tokens),
        limit=LengthLimit(hparams["max_tokens"], hparams["shorten"]),
        augmentation=augmentation,
        leave_out=UNREADABLE,  # `max_bad_audio` limits them
    )
    if temperature is not None:
        weights = temperature_weights(dataset.rows.sizes, temperature)
    if weights is not None:
        dataset.mix(weights, seed)
    return dataset


def build_datasets(
    hparams: Mapping[str, Any], model: AudioLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, AudioTextDataset]:
    """Build the datasets "train" and "valid" of training."""
    return {split: build_dataset(hparams, split, model, tokenizer) for split in ("train", "valid")}


def open_store(hparams: Mapping[str, Any]) -> FeatureStore:
    """Open the feature store and check that it was written by the encoder of the `encoder` block.

    Layers, pooling, padding and the other entries of the block are compared, and its weights (`encoder_weights`).

    Raises
    ------
    ConfigError
        `feature_folder` is missing, or the block or its weights differ from the store's fingerprint.
    FeatureStoreError
        The store cannot be read.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "logmel"}) as writer:
    ...     writer.add("a.flac", torch.zeros(1, 3, 80))
    >>> open_store({"feature_folder": folder, "encoder": {"type": "logmel"}})["a.flac"].shape
    torch.Size([1, 3, 80])
    """
    folder, config = hparams["feature_folder"], hparams["encoder"]
    if folder is None:
        raise ConfigError(
            "feature_folder is missing: set it to the folder that prepare.py wrote, or set train_encoder: true"
        )
    store = FeatureStore(folder)
    _require_encoder(folder, config, store.fingerprint)
    check_arguments("encoders", config)
    require_same_weights(folder, config, store.fingerprint)
    stored, wanted = rule_for_long_audio({"feature_folder": folder}), hparams.get("long_audio")
    if wanted not in (None, stored):
        raise ConfigError(
            f"long_audio is {wanted}, but the features in {folder} were stored with {stored}; remove long_audio, or "
            "run prepare.py again into another feature_folder"
        )
    return store


def rule_for_long_audio(hparams: Mapping[str, Any]) -> str:
    """Rule for clips longer than the encoder accepts: that of live audio, or that of the feature store.

    Examples
    --------
    >>> rule_for_long_audio({"train_encoder": True, "long_audio": "chunk"})
    'chunk'
    """
    folder = hparams.get("feature_folder")
    if hparams.get("train_encoder") or folder is None:
        return hparams.get("long_audio") or "reject"
    return str(read_header(Path(folder)).get("long_audio", "reject")).partition(",")[0]  # without the seed


def _require_encoder(
    folder: str, config: Mapping[str, Any], fingerprint: Mapping[str, Any], where: str = "encoder"
) -> None:
    """Raise ConfigError where an entry of an encoder block differs from a store's fingerprint."""
    requested: dict[str, Any] = {"type": config.get("type")}
    if requested["type"] == fingerprint["type"]:
        requested |= with_defaults("encoders", config)
    for name in sorted(requested.keys() & fingerprint.keys()):
        stored, wanted = fingerprint[name], requested[name]
        if name == "encoders" and stored.keys() == wanted.keys():
            for inner, block in wanted.items():
                _require_encoder(folder, block, stored[inner], f"{where}.encoders.{inner}")
            continue
        if name == "layers":  # in the block, None means all layers, and negative numbers count from the end
            blocks = fingerprint["blocks"]
            numbers = isinstance(wanted, list) and all(isinstance(layer, int) for layer in wanted)
            if wanted is not None and not numbers:
                raise ConfigError(f"{where}: layers is {wanted!r}; write a list of numbers, or null for all layers")
            wanted = list(range(blocks)) if wanted is None else [layer % blocks for layer in wanted]
        if stored != wanted:
            raise ConfigError(
                f"{folder}: its features were computed with {where} {name} {stored!r}, the YAML file has {wanted!r}. "
                "Use the stored setting, or run prepare.py again into another feature_folder"
            )


def frame_seconds(source: nn.Module | FeatureStore) -> float:
    """Duration of a frame of an encoder, or of the features in a store, in seconds.

    Examples
    --------
    >>> frame_seconds(build("encoders", {"type": "logmel"}))
    0.01
    """
    return source.fingerprint["frame_seconds"] if isinstance(source, FeatureStore) else source.frame_seconds
