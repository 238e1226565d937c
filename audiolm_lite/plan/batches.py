"""The batches that need most memory: as many items as the token budget allows, all but one of equal length."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, collate
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE, Batch
from audiolm_lite.training.build import build_dataset


def bucket_items(hparams: Mapping, model: AudioLanguageModel, tokenizer: Any) -> dict[str, Item]:
    """The longest, the middle and the shortest item of the training set, which stand for its length buckets."""
    dataset = build_dataset(hparams, "train", model, tokenizer)
    order = np.argsort(dataset.lengths, kind="stable").tolist()
    indices = {"longest": order[-1], "middle": order[len(order) // 2], "shortest": order[0]}
    return {name: dataset[index] for name, index in indices.items()}


def assumed_item(
    model: AudioLanguageModel,
    source: FeatureStore | nn.Module,
    audio_seconds: float,
    text_tokens: int,
    answer_tokens: int,
) -> Item:
    """An item of these lengths, filled with zeros, for data that is not prepared yet.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from audiolm_lite.adapters.identity import Identity
    >>> from audiolm_lite.encoders.logmel import LogMel
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = AudioLanguageModel(Identity(80, 1, 8), LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))
    >>> item = assumed_item(model, LogMel(80, "exact"), audio_seconds=1.0, text_tokens=3, answer_tokens=2)
    >>> item.input_ids.count(AUDIO_SLOT), len(item.input_ids), item.labels[-3:]
    (100, 105, [-100, 0, 0])
    """
    samples = round(audio_seconds * SAMPLE_RATE)
    if isinstance(source, FeatureStore):
        frames = max(1, round(audio_seconds / source.fingerprint["frame_seconds"]))
    else:
        frames = source.num_frames(samples)
    ids = [AUDIO_SLOT] * model.adapter.num_tokens(frames) + [0] * (text_tokens + answer_tokens)
    labels = [IGNORE] * (len(ids) - answer_tokens) + [0] * answer_tokens
    if model.encoder is not None:
        return Item({"id": "assumed"}, ids, labels, waveform=torch.zeros(samples))
    features = torch.zeros(source.num_layers, frames, source.feature_dim, dtype=torch.float16)
    return Item({"id": "assumed"}, ids, labels, features=features)


def largest_batch(item: Item, batch_tokens: int) -> Batch:
    """As many copies of an item as the token budget allows.

    Raises
    ------
    ConfigError
        The budget is smaller than one item.

    Examples
    --------
    >>> item = Item({"id": "a"}, [AUDIO_SLOT, 5, 6, 7], [IGNORE, IGNORE, 6, 7], features=torch.zeros(1, 1, 8))
    >>> largest_batch(item, 15).input_ids.tolist()
    [[-1, 5, 6, 7], [-1, 5, 6, 7], [-1, 5, 6, 0]]
    """
    size = batch_tokens // len(item.input_ids)
    if size < 1:
        raise ConfigError(
            f"batch_tokens is {batch_tokens}, but item {item.row['id']} has {len(item.input_ids)} tokens; "
            "raise batch_tokens, or set max_tokens to leave out long items"
        )
    return padded_batch(item, size)


def padded_batch(item: Item, size: int) -> Batch:
    """`size` copies of an item. The last of several lacks its last token, since batches with padding need a mask.

    Examples
    --------
    >>> item = Item({"id": "a"}, [AUDIO_SLOT, 5, 6], [IGNORE, IGNORE, 6], features=torch.zeros(1, 1, 8))
    >>> padded_batch(item, 2).attention_mask.tolist()
    [[True, True, True], [True, True, False]]
    """
    shorter = replace(item, input_ids=item.input_ids[:-1], labels=item.labels[:-1])
    return collate([*[item] * (size - 1), shorter if size > 1 else item])
