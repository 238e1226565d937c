"""A saved model for tests of model folders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audiolm_lite.hub.save import save_model
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel


@pytest.fixture
def saved(sources: Path, make_experiment: Callable, make_model: Callable) -> tuple[Path, dict, AudioLanguageModel]:
    """Folder, experiment and model of a saved model with a LoRA."""
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    save_model(model, experiment, sources / "model")
    return sources / "model", experiment, model
