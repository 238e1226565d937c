"""Initialisation of the adapter before training, by the methods that the YAML file names.

A method is a function `method(brain, datasets, tokenizer, alive, **options) -> str`, which sets weights of
`brain.model.adapter` from the datasets and returns a line for the log. `options` are the entries of its key in the YAML
file. It runs in the main process, while the others wait and then receive the adapter; `alive` is to be called every few
minutes at least. A new method is an entry in METHODS and its key in `config.keys.TRAINING_KEYS`.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import ConfigError, did_you_mean
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.distributed import processes
from audiolm_lite.training.alignment_init import align_projection
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.ctc_start import ctc_start

logger = logging.getLogger(__name__)

# By their keys in the YAML file, in the order in which they run.
METHODS: dict[str, Callable[..., str]] = {"alignment_init": align_projection, "ctc_start": ctc_start}


def initialize_adapter(
    brain: AudioLMBrain, datasets: Mapping[str, AudioTextDataset], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Initialise the adapter by each method whose key is set; without one the adapter stays as it is.

    Parameters
    ----------
    brain : AudioLMBrain
        Of the stage, after `load_previous_stage`.
    datasets : mapping
        "train" and "valid".
    tokenizer : PreTrainedTokenizerBase
        The LLM's.

    Raises
    ------
    ConfigError
        The method does not support the adapter or the data, or does not have an option.
    """
    for key, method in METHODS.items():
        options = brain.experiment[key]
        if options is None:
            continue
        _check_options(key, method, options)

        def work(
            alive: Callable[[], None], method: Callable[..., str] = method, options: Mapping[str, Any] = options
        ) -> str:
            return method(brain, datasets, tokenizer, alive, **options)

        line = processes.run_in_main(work)
        processes.copy_from_main(brain.model.adapter.state_dict().values())
        brain.bad_audio.synchronise()
        if line is not None:
            logger.info("%s", line)


def _check_options(key: str, method: Callable[..., str], options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that the method lacks, or one without a default that is missing."""
    known = dict(list(inspect.signature(method).parameters.items())[4:])
    for name in options:
        if name not in known:
            raise ConfigError(f"{key}: unknown option {name!r}{did_you_mean(name, known)}")
    missing = [name for name, entry in known.items() if entry.default is entry.empty and name not in options]
    if missing:
        raise ConfigError(f"{key}: {missing[0]} is missing; write {key}: {{{', '.join(f'{n}: ...' for n in known)}}}")
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigError(f"{key}: {name} is {value!r}; write a number above 0")
