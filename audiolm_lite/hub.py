"""The folder of a finished model: writing and loading it, and `push_to_hub` to share it.

A model's folder holds data, no code and no pickle:

- `audiolm_lite.json`: format, the encoder's, adapter's and LLM's configurations, prompt template, generation settings,
  and how many tensors each of the following files has;
- `adapter.safetensors`: the adapter, whole;
- `lora/`: the LoRA as PEFT writes it (`PeftModel.from_pretrained` loads it), where one was trained;
- `llm.safetensors`, `encoder.safetensors`: tensors of the LLM or the encoder that were trained themselves;
- `llm/`, `encoder/`: the pretrained models below, where the folder was written to stand alone (`bundle=True`).

Loading builds only parts of this library and checks that every tensor of every file finds its place.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.bundle import ModelBundle
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.model import AudioLanguageModel
from audiolm_lite.parts import ConfigError, build, map_sources, sources

FORMAT = 1
CONFIG = "audiolm_lite.json"
GENERATION = {"max_new_tokens": 200}
INSTRUCTIONS = {"transcribe": "Transcribe the speech.", "caption": "Describe the audio."}
_PRETRAINED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


class ModelFolderError(ValueError):
    """A model's folder that cannot be written or loaded; the message names the file, what is wrong and the remedy."""


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
            names = {_stored_name(name, part): t.detach().cpu().clone() for name, t in tensors.items()}
            save_file(names, folder / f"{part}.safetensors")
            counts[f"{part}.safetensors"] = len(names)
    if _lora_acts(model.llm):
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
        config[name] = map_sources(config[name], partial(_store_source, folder=folder, bundle=bundle), name)
    return config


def write_config(folder: Path, config: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Write `audiolm_lite.json`, last of a model's files; `counts` says how many tensors each of the others has."""
    temporary = folder / f".{CONFIG}.tmp"
    content = {**config, "tensors": dict(counts)}
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> ModelBundle:
    """Load a model's folder, or a repository of the Hugging Face hub that holds one.

    Raises
    ------
    ModelFolderError
        No model there, another format, a tensor too many or too few, a LoRA that does nothing.
    ConfigError
        A configuration that this version of the library does not know.
    """
    folder = _local_folder(folder)
    config = read_config(folder)
    encoder = build("encoders", _located(config, "encoder", folder))
    llm, tokenizer = load_language_model(folder, config)
    adapter = build_adapter(
        config["adapter"],
        feature_dim=encoder.feature_dim,
        num_layers=encoder.num_layers,
        llm_dim=llm.get_input_embeddings().embedding_dim,
    )
    model = AudioLanguageModel(adapter, llm, encoder)
    files = config["tensors"]
    for part in ("adapter", "encoder"):
        if f"{part}.safetensors" in files or part == "adapter":
            _load_part(model, part, folder / f"{part}.safetensors", files.get(f"{part}.safetensors"))
    model.requires_grad_(False).eval()
    for part in (model.adapter, model.encoder, *([] if config["llm"].get("quantization") else [llm])):
        part.to(device)  # a quantised LLM is on its device already
    return ModelBundle(
        model,
        tokenizer,
        PromptTemplate(config["template"]),
        config["generation"],
        config["instructions"],
        _identity(folder, files),
    )


def load_trained(model: AudioLanguageModel, folder: str | Path) -> list[str]:
    """Start a model from what a model's folder holds: the adapter, the LoRA and other trained tensors.

    So a published checkpoint, converted, or a model shared by somebody else is tuned further. A LoRA that `model` has
    and the folder lacks, on the LLM or on the adapter, stays at its start.

    Returns
    -------
    list of str
        Names of the model's tensors that were loaded.

    Raises
    ------
    ModelFolderError
        As `load_model`, or the folder's adapter is built otherwise, or its LoRA has no place in this LLM.
    """
    folder = _local_folder(folder)
    config = read_config(folder)
    files = config["tensors"]
    names = _load_part(model, "adapter", folder / "adapter.safetensors", files.get("adapter.safetensors"))
    for part in ("llm", "encoder"):
        if f"{part}.safetensors" in files and getattr(model, part) is not None:
            names += _load_part(model, part, folder / f"{part}.safetensors", files[f"{part}.safetensors"])
    if "lora" in files:
        if not hasattr(model.llm, "peft_config"):
            raise ModelFolderError(f"{folder}: has a LoRA, and the llm block has none: give it the same lora entry")
        _load_lora(model.llm, folder / "lora")
        names += [name for name in model.state_dict() if name.startswith("llm.") and "lora_" in name]
    return names


def load_language_model(folder: Path, config: Mapping[str, Any]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """LLM of a model's folder with its LoRA and trained tensors, and its tokenizer; raises as `load_model` does."""
    llm_config = _located(config, "llm", folder)
    llm, tokenizer = load_llm(llm_config)
    if "llm.safetensors" in config["tensors"]:
        count = config["tensors"]["llm.safetensors"]
        _load_part(nn.ModuleDict({"llm": llm}), "llm", folder / "llm.safetensors", count)
    if llm_config.get("lora") is not None:
        _load_lora(llm, folder / "lora")
    return llm, tokenizer


def _located(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """The encoder's or the LLM's configuration with its sources as they are found from here."""
    return map_sources(config[name], partial(_find_source, folder=folder), name)


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model's folder with a model card to the Hugging Face hub; returns the address.

    The folder is loaded first, so that nothing broken is published. An existing `README.md` is kept; otherwise one is
    generated, with the results in `metrics.json` where the folder has them. Log in first: `hf auth login`.

    Raises
    ------
    ModelFolderError
        The folder does not load, or names a pretrained model by a path of this machine.
    """
    from huggingface_hub import HfApi

    from audiolm_lite.model_card import model_card

    folder = Path(folder)
    load_model(folder)
    config = read_config(folder)
    for source in sources(config["encoder"]) + sources(config["llm"]):
        if Path(source).is_absolute():
            raise ModelFolderError(
                f"{folder / CONFIG}: source {source} is a path of this machine; "
                "write the model again with bundle=True, or name a repository of the hub"
            )
    if not (folder / "README.md").exists():
        metrics = folder / "metrics.json"
        results = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else None
        (folder / "README.md").write_text(model_card(config, repo_id, results), encoding="utf-8")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    # A stage's output folder has checkpoints and logs beside the model.
    own = [CONFIG, "README.md", "metrics.json", *config["tensors"], "lora/*", "llm/*", "encoder/*"]
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=own))


def _store_source(source: str, name: str, folder: Path, bundle: bool) -> str:
    """How a configuration names its pretrained model: relative inside the folder, absolute elsewhere, or a hub name."""
    path = Path(source).expanduser()
    if bundle and not path.resolve().is_relative_to(folder.resolve()):
        _copy_pretrained(_local_folder(source, what=name), folder / name)
        return name
    if not path.exists():
        return source
    path = path.resolve()
    inside = path.is_relative_to(folder.resolve())
    return path.relative_to(folder.resolve()).as_posix() if inside else str(path)


def _find_source(source: str, name: str, folder: Path) -> str:
    """Inverse of `_store_source`."""
    path = (folder / source).resolve()
    if not Path(source).is_absolute() and path.is_relative_to(folder.resolve()) and path.exists():
        return str(path)
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelFolderError(
            f"{folder / CONFIG}: {name} source {source} is not on this machine; write the model with bundle=True, "
            "or put the folder or hub name of the same pretrained model there"
        )
    return source


def _local_folder(source: str | Path, what: str = "model") -> Path:
    """A folder itself, or the local copy of a repository of the hub."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_PRETRAINED_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelFolderError(
            f"{what} {source}: neither a folder nor a repository that could be fetched: {error}"
        ) from error


def _copy_pretrained(source: Path, target: Path) -> None:
    files = sorted({path for pattern in _PRETRAINED_FILES for path in source.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelFolderError(f"{source}: holds no .safetensors, which bundle=True needs; convert the model first")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, target / path.name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `audiolm_lite.json`; raises ModelFolderError as `load_model` does."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelFolderError(f"{folder}: no {CONFIG}; this is no model's folder, or its writing was interrupted")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ModelFolderError(f"{path}: format {found!r}, this version of audiolm_lite reads {FORMAT}; update it")
    wanted = {"encoder": dict, "adapter": dict, "llm": dict, "template": str, "generation": dict, "instructions": dict}
    for name, kind in (wanted | {"tensors": dict}).items():
        if not isinstance(config.get(name), kind):
            raise ModelFolderError(f'{path}: entry "{name}" must be a {kind.__name__}; fetch the file again')
    if not isinstance(config["llm"].get("source"), str):
        raise ConfigError(f'{path}: llm has no "source"')
    return config


def _stored_name(name: str, part: str) -> str:
    """Name in a part's file: without the part and what PEFT wraps around the LLM, as the bare model calls it."""
    name = name.removeprefix(f"{part}.")
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".") if part == "llm" else name


@torch.no_grad()
def _load_part(model: nn.Module, part: str, path: Path, count: int | None) -> list[str]:
    """Copy a part's tensors into the model and return their names there; each needs a place, and none may be missing.

    An adapter that was written without a LoRA fits one that has one, whose LoRA then stays as it is.
    """
    tensors = _read_tensors(path)
    here = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.startswith(f"{part}.")}
    if part == "adapter" and not any("lora_" in name for name in tensors):
        here = {name: tensor for name, tensor in here.items() if "lora_" not in name}
        own = {_stored_name(name, part).replace(".base_layer.", "."): name for name in here}
    else:
        own = {_stored_name(name, part): name for name in here}
    if unknown := sorted(set(tensors) - set(own)):
        raise ModelFolderError(f"{path}: {len(unknown)} tensors have no place in this {part}, for example {unknown[0]}")
    missing = sorted(set(own) - set(tensors)) if part == "adapter" else []
    if missing or len(tensors) != count:
        example = f", for example {missing[0]}" if missing else ""
        raise ModelFolderError(
            f"{path}: {len(tensors)} tensors where {count} were written{example} is missing; fetch it again"
        )
    for name, tensor in tensors.items():
        target = here[own[name]]
        if target.shape != tensor.shape:
            raise ModelFolderError(f"{path}: {name} has shape {list(tensor.shape)}, the {part} {list(target.shape)}")
        target.copy_(tensor)
    return [own[name] for name in tensors]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelFolderError(f"{path}: no such file; fetch the model again")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own SafetensorError, a bare Exception
        raise ModelFolderError(f"{path}: damaged ({error}); fetch it again") from error


def _lora_acts(llm: nn.Module) -> bool:
    """Whether any LoRA B matrix is not zero; where all are, the LoRA adds nothing."""
    return any("lora_B" in name and bool(tensor.count_nonzero()) for name, tensor in llm.state_dict().items())


def _save_lora(llm: nn.Module, folder: Path, base: str) -> int:
    """Write a plain PEFT folder; returns its number of tensors."""
    llm.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form for a model card
    return len(load_file(folder / "adapter_model.safetensors"))


def _load_lora(llm: nn.Module, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    tensors = _read_tensors(path)
    own = get_peft_model_state_dict(llm, save_embedding_layers=False)
    if different := sorted(set(own) ^ set(tensors)):
        side = "is not in the file" if different[0] in own else "has no place in this LLM"
        raise ModelFolderError(f"{path}: {len(different)} tensors do not match this LoRA: {different[0]} {side}")
    wrong = [name for name, tensor in tensors.items() if own[name].shape != tensor.shape]
    if wrong:
        raise ModelFolderError(f"{path}: {wrong[0]} has shape {list(tensors[wrong[0]].shape)}, the LLM's is another")
    set_peft_model_state_dict(llm, tensors)
    if not _lora_acts(llm):
        raise ModelFolderError(
            f"{path}: every lora_B is zero, so the LoRA does nothing; fetch it again or convert it anew"
        )


def _identity(folder: Path, files: Mapping[str, int]) -> str:
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for name in sorted(files):
        path = folder / (f"{name}/adapter_model.safetensors" if name == "lora" else name)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
