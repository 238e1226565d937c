"""The folder of a finished model: its format, its configuration file and the pretrained models that it names.

A model's folder holds data, no code and no pickle:

- `audiolm_lite.json`: format, the encoder's, adapter's and LLM's configurations, prompt template, generation settings,
  and how many tensors each of the following files has;
- `adapter.safetensors`: the adapter, whole;
- `lora/`: the LoRA as PEFT writes it (`PeftModel.from_pretrained` loads it), where one was trained;
- `llm.safetensors`, `encoder.safetensors`: tensors of the LLM or the encoder that were trained themselves;
- `llm/`, `encoder/`: the pretrained models below, where the folder was written to stand alone (`bundle=True`).

Loading builds only parts of this library and checks that every tensor of every file finds its place.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError, UserError

FORMAT = 1
CONFIG = "audiolm_lite.json"
PRETRAINED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


class ModelFolderError(UserError, ValueError):
    """A model's folder that cannot be written or loaded; the message names the file, what is wrong and the remedy."""


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


def find_source(source: str, name: str, folder: Path) -> str:
    """Inverse of `stored_source`."""
    path = (folder / source).resolve()
    if not Path(source).is_absolute() and path.is_relative_to(folder.resolve()) and path.exists():
        return str(path)
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelFolderError(
            f"{folder / CONFIG}: {name} source {source} is not on this machine; write the model with bundle=True, "
            "or put the folder or hub name of the same pretrained model there"
        )
    return source


def local_folder(source: str | Path, what: str = "model") -> Path:
    """A folder itself, or the local copy of a repository of the hub."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(PRETRAINED_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelFolderError(
            f"{what} {source}: neither a folder nor a repository that could be fetched: {error}"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a model folder; raises ModelFolderError where it is missing or damaged."""
    if not path.is_file():
        raise ModelFolderError(f"{path}: no such file; fetch the model again")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own SafetensorError, a bare Exception
        raise ModelFolderError(f"{path}: damaged ({error}); fetch it again") from error


def stored_name(name: str, part: str) -> str:
    """Name in a part's file: without the part and what PEFT wraps around the LLM, as the bare model calls it."""
    name = name.removeprefix(f"{part}.")
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".") if part == "llm" else name


def lora_is_trained(llm: nn.Module) -> bool:
    """Whether any LoRA B matrix is not zero; where all are, the LoRA adds nothing."""
    return any("lora_B" in name and bool(tensor.count_nonzero()) for name, tensor in llm.state_dict().items())
