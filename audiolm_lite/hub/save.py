"""Saving a model folder (`hub.folder` describes the format)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audiolm_lite.config.registry import map_sources
from audiolm_lite.decoding.options import read_options
from audiolm_lite.hub.bundle import copy_pretrained
from audiolm_lite.hub.folder import (
    CONFIG_FILE,
    CTC_HEAD_FILE,
    FORMAT,
    ModelFolderError,
    lora_is_trained,
    stored_name,
)
from audiolm_lite.hub.released import backbone_digests
from audiolm_lite.hub.replacement import replaced_model
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.storage.atomic import write_json

DEFAULT_GENERATION = {"max_new_tokens": 200}
DEFAULT_INSTRUCTIONS = {"transcribe": "Transcribe the speech.", "caption": "Describe the audio."}


def save_model(
    model: AudioLanguageModel,
    experiment: Mapping[str, Any],
    folder: str | Path,
    *,
    trained: Iterable[str] = (),
    bundle: bool = False,
    ctc_head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder; a model that is already there is replaced at once (see `hub.replacement`).

    Parameters
    ----------
    model : AudioLanguageModel
        Its adapter and LoRA are always written, tensors of the LLM and the encoder only if they were trained.
    experiment : mapping
        `encoder`, `adapter`, `llm` (configurations) and `template`; optionally `generation` and `instructions`
        (see `ModelBundle`).
    folder : path
        Created if it is missing.
    trained : iterable of str
        Names of tensors that differ from the pretrained files, in addition to those that require gradients now. For
        example those trained in an earlier stage.
    bundle : bool
        Copy the pretrained models into the folder, so that it can be loaded without anything else, with the files of
        their licences, notices and use policies.
    ctc_head : mapping, optional
        Tensors of the adapter's CTC head, as `CTCHead.tensors` returns them.

    Raises
    ------
    ModelFolderError
        A pretrained model to copy has no safetensors file, or cannot be downloaded; or the LoRA has been merged.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).requires_grad_(False)
    >>> folder = getfixture("tmp_path")
    >>> blocks = {"encoder": {"type": "whisper"}, "adapter": {"type": "linear"}, "llm": {"source": "owner/llm"}}
    >>> save_model(AudioLanguageModel(nn.Linear(2, 8), llm), {**blocks, "template": "{audio}"}, folder)
    >>> sorted(file.name for file in folder.iterdir())
    ['adapter.safetensors', 'audiolm_lite.json']
    """
    folder = Path(folder)
    if getattr(model.llm, "lora_is_merged", False):
        raise ModelFolderError(
            f"{folder}: the LoRA has been merged into the LLM's weights, as AudioLM and the evaluation do; save a "
            "model that hub.load.load_model has loaded"
        )
    changed = {*trained, *(name for name, p in model.named_parameters() if p.requires_grad)}
    state = {n: t for n, t in model.state_dict().items() if not (n.startswith("llm.") and "lora_" in n)}
    components = {
        "adapter": {n: t for n, t in state.items() if n.startswith("adapter.")},
        "llm": {n: t for n, t in state.items() if n.startswith("llm.") and n in changed},
        "encoder": {n: t for n, t in state.items() if n.startswith("encoder.") and n in changed},
    }
    counts: dict[str, int] = {}
    copies: list[str] = []
    with replaced_model(folder, CONFIG_FILE, copies) as unfinished:
        config = make_config(experiment, folder, bundle, unfinished)
        copies += config.get("licences", {})
        for component, tensors in components.items():
            if tensors:
                stored = {stored_name(name, component): t.detach().cpu().clone() for name, t in tensors.items()}
                save_file(stored, unfinished / f"{component}.safetensors")
                counts[f"{component}.safetensors"] = len(stored)
        if ctc_head is not None:
            save_file(dict(ctc_head), unfinished / CTC_HEAD_FILE)
            counts[CTC_HEAD_FILE] = len(ctc_head)
        if lora_is_trained(model.llm):
            counts["lora"] = _save_lora(model.llm, unfinished / "lora", config["llm"]["source"])
        else:
            config["llm"]["lora"] = None  # there is none, or its B matrices are zero and it changes nothing
        write_config(unfinished, config, counts)


def make_config(
    experiment: Mapping[str, Any], folder: Path, bundle: bool = False, unfinished: Path | None = None
) -> dict[str, Any]:
    """Make the configuration of a model folder, except for the numbers of tensors.

    Parameters
    ----------
    experiment, folder, bundle
        As in `save_model`; with `bundle` the pretrained models are copied here.
    unfinished : path, optional
        Where the copies are written before they are moved to `folder`; by default there.

    Returns
    -------
    dict
        Content of `audiolm_lite.json` as `write_config` takes it.

    Raises
    ------
    ModelFolderError, GenerationError
        As in `save_model` and `check_answer_settings`.

    Examples
    --------
    >>> blocks = {"encoder": {"type": "whisper"}, "adapter": {"type": "linear"}, "llm": {"source": "owner/llm"}}
    >>> config = make_config({**blocks, "template": "{audio}"}, getfixture("tmp_path"))
    >>> config["llm"], config["generation"]
    ({'source': 'owner/llm'}, {'max_new_tokens': 200})
    """
    check_answer_settings(experiment)
    written = folder if unfinished is None else unfinished
    config = {
        "format": FORMAT,
        **{name: dict(experiment[name]) for name in ("encoder", "adapter", "llm")},
        "template": experiment["template"],
        "generation": dict(experiment.get("generation") or DEFAULT_GENERATION),
        "instructions": DEFAULT_INSTRUCTIONS | dict(experiment.get("instructions") or {}),
    }
    if experiment.get("long_audio") not in (None, "reject"):
        config["long_audio"] = experiment["long_audio"]
    licences: dict[str, Any] = {}

    def stored(source: str, name: str) -> str:
        if bundle and not Path(source).expanduser().resolve().is_relative_to(folder.resolve()):
            licences[name] = copy_pretrained(source, written / name, name)
            return name
        return _stored_source(source, folder)

    def present(source: str, name: str) -> str:
        return str(written / name) if name in licences else source

    blocks = {name: config[name] for name in ("encoder", "llm")}
    config |= {name: map_sources(block, stored, name) for name, block in blocks.items()}
    # Of the copies, because a tokenizer may have been written in another form.
    blocks = {name: map_sources(block, present, name) for name, block in blocks.items()}
    if digests := backbone_digests(blocks, by_name=not bundle):
        config["backbones"] = digests
    if licences:
        config["licences"] = licences
    return config


def check_answer_settings(experiment: Mapping[str, Any]) -> None:
    """Check `generation` and `instructions`, so that training does not end in a model folder that cannot answer.

    Raises
    ------
    GenerationError
        `generation` has an unknown option or a value that it cannot have.
    ModelFolderError
        `instructions` has an entry other than the two questions, or one that is not text.

    Examples
    --------
    >>> check_answer_settings({"instructions": {"transcribe": "what is said?"}})
    >>> check_answer_settings({"instructions": {"translate": "what is said?"}})
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: instructions: 'translate' is not an entry with text; it takes ...
    """
    read_options(experiment.get("generation") or {})
    for name, text in (experiment.get("instructions") or {}).items():
        if name not in DEFAULT_INSTRUCTIONS or not isinstance(text, str):
            known = ", ".join(DEFAULT_INSTRUCTIONS)
            raise ModelFolderError(f"instructions: {name!r} is not an entry with text; it takes {known}")


def write_config(folder: Path, config: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Write `audiolm_lite.json`, which makes the folder loadable: write it last.

    Parameters
    ----------
    folder : path
        The model folder.
    config : mapping
        From `make_config`.
    counts : mapping
        Name of each other file of the folder ("lora" for the LoRA) -> number of its tensors.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> write_config(folder, {"format": 1}, {"adapter.safetensors": 4})
    >>> json.loads((folder / CONFIG_FILE).read_text())
    {'format': 1, 'tensors': {'adapter.safetensors': 4}}
    """
    write_json(folder / CONFIG_FILE, {**config, "tensors": dict(counts)})


def _stored_source(source: str, folder: Path) -> str:
    """Source of a pretrained model as the folder's configuration stores it; `resolve_source` is the inverse.

    Relative path inside the folder, absolute path elsewhere, or name on the hub.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return source
    path = path.resolve()
    inside = path.is_relative_to(folder.resolve())
    return path.relative_to(folder.resolve()).as_posix() if inside else str(path)


def _save_lora(llm: nn.Module, folder: Path, base: str) -> int:
    """Write a plain PEFT folder and return its number of tensors."""
    llm.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**settings, "base_model_name_or_path": base}, ensure_ascii=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, which is an empty template
    return len(load_file(folder / "adapter_model.safetensors"))
