"""From checked hyperparameters to the model and its datasets, so that train.py and evaluate.py stay on one page."""

import logging
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.registry import build, with_defaults
from audiolm_lite.data.augmentation import Augmentation
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.length_limit import LengthLimit
from audiolm_lite.data.mixing import temperature_weights
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.distributed import processes
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.training.alignment_init import initialise_projection
from audiolm_lite.training.trainable import audio_token_rate

logger = logging.getLogger(__name__)


def build_model(hparams: Mapping) -> tuple[AudioLanguageModel, PreTrainedTokenizerBase]:
    """Build the model that `encoder`, `adapter` and `llm` describe, and load the LLM's tokenizer.

    With `train_encoder` the encoder is part of the model; otherwise it is never loaded, and the feature store says
    what its features look like.

    Raises
    ------
    ConfigError
        A block is wrong, the store was made with another encoder block, or settings do not go together.
    """
    if hparams["distillation"] is not None and hparams["loss_kernel"] != "chunked":
        raise ConfigError(
            f"loss_kernel {hparams['loss_kernel']} makes no logits, which distillation needs: use chunked"
        )
    # of processes that share one model out, the first one reads the LLM; quantised weights are not shared out
    shared = hparams["parallel"] == "fsdp" and hparams["llm"].get("quantization") is None
    llm, tokenizer = load_llm(dict(hparams["llm"]), on_meta=shared and not processes.is_main())
    encoder = build("encoders", hparams["encoder"]) if hparams["train_encoder"] else None
    source = encoder if encoder is not None else open_store(hparams)
    adapter = build_adapter(
        hparams["adapter"],
        feature_dim=source.feature_dim,
        num_layers=source.num_layers,
        llm_dim=llm.get_input_embeddings().embedding_dim,
    )
    rate = audio_token_rate(adapter, _frame_seconds(source))
    logger.info("The adapter gives %.4g audio tokens a second (of a clip of 10 s)", rate)
    return AudioLanguageModel(adapter, llm, encoder, hparams["loss_chunk"], hparams["loss_kernel"]), tokenizer


def build_dataset(
    hparams: Mapping,
    split: str,
    model: AudioLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
) -> AudioTextDataset:
    """Build the dataset of `manifests[split]`: stored features, or waveforms where the model has an encoder.

    The manifests of "train" may be mixed, by weights in their list or by `mixing_temperature`.

    Raises
    ------
    ConfigError
        No manifests for this split, or entries, weights or a temperature that do not go together.
    """
    entries = hparams["manifests"].get(split)
    if not entries:
        raise ConfigError(f"manifests: no list of files under {split!r}; the YAML file gives {hparams['manifests']}")
    manifests, weights = split_entries(entries)
    temperature = hparams["mixing_temperature"] if split == "train" else None
    if weights and (split != "train" or temperature is not None):
        raise ConfigError(f"manifests.{split} has weights: they are for training alone, and without mixing_temperature")
    seed, question_files = hparams["seed"], (hparams["question_files"] or {}).get(split)
    num_frames = None if model.encoder is None else model.encoder.num_frames
    augmentation = None
    if split == "train" and hparams["augmentation"] is not None:
        augmentation = Augmentation(hparams["augmentation"], seed, num_frames)
    questions = None if question_files is None else Questions(question_files, len(manifests), seed)
    dataset = AudioTextDataset(
        select_rows(manifests, hparams["tasks"], questions=questions),
        FeatureSource(open_store(hparams)) if num_frames is None else WaveformSource(num_frames),
        PromptBuilder(PromptTemplate(hparams["template"]), tokenizer, model.adapter.num_tokens),
        limit=LengthLimit(hparams["max_tokens"], hparams["shorten"]),
        augmentation=augmentation,
    )
    if temperature is not None:
        weights = temperature_weights(dataset.rows.sizes, temperature)
    if weights is not None:
        dataset.mix(weights, seed)
    return dataset


def build_datasets(
    hparams: Mapping, model: AudioLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, AudioTextDataset]:
    """Build the datasets of training: {"train": ..., "valid": ...}."""
    return {split: build_dataset(hparams, split, model, tokenizer) for split in ("train", "valid")}


def align_projection(
    hparams: Mapping, model: AudioLanguageModel, dataset: AudioTextDataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Start the adapter's projection in closed form where the YAML file has `alignment_init` (else do nothing).

    A process that has no weights yet gets the projection with them.
    """
    if hparams["alignment_init"] is None or model.embedding.weight.is_meta:
        return
    source = model.encoder if model.encoder is not None else dataset.source.store
    frame_seconds = _frame_seconds(source)
    many = 10_000
    token_seconds = frame_seconds * many / model.adapter.num_tokens(many)
    explained = initialise_projection(model, dataset, tokenizer, token_seconds, **hparams["alignment_init"])
    logger.info("Closed-form start of adapter.projection explains %.1f %% of the soft text", 100 * explained)


def open_store(hparams: Mapping) -> FeatureStore:
    """Open the feature store and check that it was made with what the `encoder` block asks for.

    The encoder's weights are not read here: what the block says of layers, pooling and padding is compared.

    Raises
    ------
    ConfigError
        No `feature_folder`, or an entry of the block differs from the store's fingerprint.
    FeatureStoreError
        The store cannot be read.
    """
    folder, config = hparams["feature_folder"], hparams["encoder"]
    if folder is None:
        raise ConfigError("feature_folder is missing: name the store that prepare.py wrote, or set train_encoder: true")
    store = FeatureStore(folder)
    _require_encoder(folder, config, store.fingerprint)
    return store


def _require_encoder(folder: str, config: Mapping, fingerprint: Mapping, where: str = "encoder") -> None:
    """Raise ConfigError where an encoder block asks for something else than a store's fingerprint says."""
    asked = {"type": config.get("type")}
    if asked["type"] == fingerprint["type"]:
        asked |= with_defaults("encoders", config)
    for name in sorted(asked.keys() & fingerprint.keys()):
        stored, wanted = fingerprint[name], asked[name]
        if name == "encoders" and stored.keys() == wanted.keys():
            for inner, block in wanted.items():
                _require_encoder(folder, block, stored[inner], f"{where}.encoders.{inner}")
            continue
        if name == "layers":  # the block may leave out all of them or count from the end
            blocks = fingerprint["blocks"]
            wanted = list(range(blocks)) if wanted is None else [layer % blocks for layer in wanted]
        if stored != wanted:
            raise ConfigError(
                f"{folder}: its features were made with {where} {name} {stored!r}, the YAML file asks for {wanted!r}. "
                "Use the stored setting, or run prepare.py again into another feature_folder"
            )


def _frame_seconds(source: nn.Module | FeatureStore) -> float:
    """Duration of a frame: an encoder knows its own, a store has it in its fingerprint."""
    return source.fingerprint["frame_seconds"] if isinstance(source, FeatureStore) else source.frame_seconds
