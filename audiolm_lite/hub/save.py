"""Writing the folder of a finished model (see `hub.folder` for its format)."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from audiolm_lite.config.registry import map_sources
from audiolm_lite.hub.folder import (
    CONFIG,
    FORMAT,
    PRETRAINED_FILES,
    ModelFolderError,
    local_folder,
    lora_is_trained,
    stored_name,
)
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel

GENERATION = {"max_new_tokens": 200}
INSTRUCTIONS = {"transcribe": "Transcribe the speech.", "caption": "Describe the audio."}


def save_model(
    model: AudioLanguageModel,
    experiment: Mapping[str, Any],
    folder: str | Path,
    *,
    trained: Iterable[str] = (),
    bundle: bool = False,
) -> None:
    """Write a model's folder; an older model there is replaced.

    Parameters
    ----------
    model : AudioLanguageModel
        Its adapter and LoRA are always written; of the LLM and the encoder, the trained tensors.
    experiment : mapping
        `encoder`, `adapter`, `llm` (configurations) and `template`; optional `generation` and `instructions`
        (see `ModelBundle`).
    folder : path
        Made when missing.
    trained : iterable of str
        Names of tensors that differ from the pretrained files besides those that require gradients now, e.g. trained in
        an earlier stage.
    bundle : bool
        Copy the pretrained models into the folder, so that it needs nothing else.

    Raises
    ------
    ModelFolderError
        A pretrained model to copy is not on this machine in safetensors form.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that an interrupted save leaves a folder that is refused, not one of two mixed models.
    (folder / CONFIG).unlink(missing_ok=True)
    for name in ("adapter.safetensors", "llm.safetensors", "encoder.safetensors"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "lora", ignore_errors=True)

    config = describe(experiment, folder, bundle)
    changed = {*trained, *(name for name, p in model.named_parameters() if p.requires_grad)}
    state = {n: t for n, t in model.state_dict().items() if not (n.startswith("llm.") and "lora_" in n)}
    own = {
        "adapter": {n: t for n, t in state.items() if n.startswith("adapter.")},
        "llm": {n: t for n, t in state.items() if n.startswith("llm.") and n in changed},
        "encoder": {n: t for n, t in state.items() if n.startswith("encoder.") and n in changed},
    }
    counts: dict[str, int] = {}
    for part, tensors in own.items():
        if tensors:
            names = {stored_name(name, part): t.detach().cpu().clone() for name, t in tensors.items()}
            save_file(names, folder / f"{part}.safetensors")
            counts[f"{part}.safetensors"] = len(names)
    if lora_is_trained(model.llm):
        counts["lora"] = _save_lora(model.llm, folder / "lora", config["llm"]["source"])
    else:
        config["llm"]["lora"] = None  # none, or untrained: B is zero and it changes nothing
    write_config(folder, config, counts)


def describe(experiment: Mapping[str, Any], folder: Path, bundle: bool = False) -> dict[str, Any]:
    """Content of the configuration of a model's folder; see `save_model` for what `experiment` holds."""
    config = {
        "format": FORMAT,
        **{name: dict(experiment[name]) for name in ("encoder", "adapter", "llm")},
        "template": experiment["template"],
        "generation": dict(experiment.get("generation") or GENERATION),
        "instructions": INSTRUCTIONS | dict(experiment.get("instructions") or {}),
    }
    for name in ("encoder", "llm"):
        config[name] = map_sources(config[name], partial(_stored_source, folder=folder, bundle=bundle), name)
    return config


def write_config(folder: Path, config: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Write `audiolm_lite.json`, last of a model's files; `counts` says how many tensors each of the others has."""
    temporary = folder / f".{CONFIG}.tmp"
    content = {**config, "tensors": dict(counts)}
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


def _stored_source(source: str, name: str, folder: Path, bundle: bool) -> str:
    """How a configuration names its pretrained model: relative inside the folder, absolute elsewhere, or a hub name."""
    path = Path(source).expanduser()
    if bundle and not path.resolve().is_relative_to(folder.resolve()):
        _copy_pretrained(local_folder(source, what=name), folder / name)
        return name
    if not path.exists():
        return source
    path = path.resolve()
    inside = path.is_relative_to(folder.resolve())
    return path.relative_to(folder.resolve()).as_posix() if inside else str(path)


def _copy_pretrained(source: Path, target: Path) -> None:
    files = sorted({path for pattern in PRETRAINED_FILES for path in source.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelFolderError(f"{source}: holds no .safetensors, which bundle=True needs; convert the model first")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, target / path.name)


def _save_lora(llm: nn.Module, folder: Path, base: str) -> int:
    """Write a plain PEFT folder; returns its number of tensors."""
    llm.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form for a model card
    return len(load_file(folder / "adapter_model.safetensors"))
