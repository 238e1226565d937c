"""Initialisation of the adapter before training, by the method that the YAML file names.

A method is a function `method(model, dataset, tokenizer, token_seconds, **options) -> str`, which sets weights of
`model.adapter` from the training set and returns a line for the log. `options` are the entries of its key in the YAML
file. A new method is an entry in METHODS and its key in `config.keys.TRAINING_KEYS`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.clip_sources import FeatureSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.training.alignment_init import align_projection
from audiolm_lite.training.build import frame_seconds

logger = logging.getLogger(__name__)

METHODS: dict[str, Callable[..., str]] = {"alignment_init": align_projection}  # by their keys in the YAML file
_MANY_FRAMES = 10_000  # of a long clip, whose audio tokens give their mean duration


def initialize_adapter(
    hparams: Mapping[str, Any],
    model: AudioLanguageModel,
    dataset: AudioTextDataset,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Initialise the adapter by each method whose key is set; without one the adapter stays as it is.

    Processes whose parameters are on the meta device do nothing: they receive the weights of the first process.

    Raises
    ------
    ConfigError
        The method does not support the adapter or the data.
    """
    if model.embedding.weight.is_meta:
        return
    source = dataset.source.store if isinstance(dataset.source, FeatureSource) else model.encoder
    token_seconds = frame_seconds(source) * _MANY_FRAMES / model.adapter.num_tokens(_MANY_FRAMES)
    for key, method in METHODS.items():
        if hparams[key] is not None:
            logger.info("%s", method(model, dataset, tokenizer, token_seconds, **hparams[key]))
