"""A stand-in for a released model: tiny backbones in a cache under the names of the real ones, and a stage on them."""

import shutil
from collections.abc import Callable
from pathlib import Path

from audiolm_lite.backbones.cache import store
from audiolm_lite.hub.save import save_model
from tests.tiny import save_recognizer

TEMPLATE = "{bos}user : {audio} {transcript:dog *} {instruction} answer : {answer}{eos}"
INSTRUCTIONS = {"transcribe": "transcribe", "caption": "describe audio"}


def store_backbone(name: str, source: Path) -> Path:
    """Copy a folder into the cache as the backbone of this name."""

    def copy(folder: Path) -> str:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        return "a test"

    return store(name, copy)


def save_stage(sources: Path, make_experiment: Callable, make_model: Callable) -> Path:
    """Write the model folder of a stage whose backbones are names; AUDIOLM_LITE_CACHE is a folder of the test."""
    shutil.rmtree(sources / "whisper")
    save_recognizer(sources / "whisper")
    experiment = make_experiment(lora=True)
    experiment["encoder"] |= {"padding": "trimmed", "decoder_language": "en"}
    for name, block in {"whisper-tiny.en": "encoder", "smollm2-135m-instruct": "llm"}.items():
        store_backbone(name, Path(experiment[block]["source"]))
        experiment[block]["source"] = name
    settings = {"template": TEMPLATE, "instructions": INSTRUCTIONS, "generation": {"max_new_tokens": 6}}
    save_model(make_model(experiment), experiment | settings, sources / "stage_3")
    return sources / "stage_3"
