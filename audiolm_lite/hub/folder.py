"""The folder of a finished model: its format, its configuration file and the pretrained models that it names.

A model folder contains data only, no code and no pickle:

- `audiolm_lite.json`: format version, configurations of encoder, adapter and LLM, prompt template, generation settings,
  and the number of tensors in each of the following files;
- `adapter.safetensors`: all tensors of the adapter;
- `lora/`: the LoRA as PEFT writes it (`PeftModel.from_pretrained` loads it), if one was trained;
- `llm.safetensors`, `encoder.safetensors`: tensors of the LLM or the encoder that were trained directly;
- `ctc_head.safetensors`: the CTC head of the adapter (`modeling.ctc`), if a stage had a CTC start;
- `llm/`, `encoder/`: copies of the pretrained models in safetensors and JSON, with their licences, if the folder was
  saved with `bundle=True`;
- `.new_model/`: only after a save that was killed, see `hub.replacement`.

Loading builds only components of this library and of transformers and checks that every tensor of every file belongs to
the model. `hub.contents` lists what a folder may contain; anything else is refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from audiolm_lite.backbones.fetch import resolve
from audiolm_lite.backbones.licences import LICENCE_PATTERNS
from audiolm_lite.backbones.untrusted import is_inside, read_json
from audiolm_lite.config.errors import ConfigError, UserError
from audiolm_lite.hub.contents import CTC_HEAD_FILE as CTC_HEAD_FILE
from audiolm_lite.hub.contents import check_config, check_files, check_source
from audiolm_lite.hub.replacement import finish_replacement

FORMAT = 1
CONFIG_FILE = "audiolm_lite.json"
MODEL_FILES = ("*.json", "*.safetensors", "README.md", *LICENCE_PATTERNS)  # what is downloaded of a model folder


class ModelFolderError(UserError, ValueError):
    """A model folder that cannot be written or loaded; the message names the file, what is wrong and the remedy."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the configuration file of a model folder; finish a save that was interrupted at its end.

    Parameters
    ----------
    folder : path
        The model folder.

    Returns
    -------
    dict
        Content of `audiolm_lite.json`.

    Raises
    ------
    ModelFolderError
        The file is missing, damaged or of another format version, or it or the folder has something that a model folder
        cannot have (see `hub.contents`).
    ConfigError
        The LLM's configuration has no source.

    Examples
    --------
    >>> from audiolm_lite.hub.save import make_config, write_config
    >>> folder = getfixture("tmp_path")
    >>> blocks = {"encoder": {"type": "whisper"}, "adapter": {"type": "linear"}, "llm": {"source": "owner/llm"}}
    >>> write_config(folder, make_config({**blocks, "template": "{audio}"}, folder), {"adapter.safetensors": 4})
    >>> config = read_config(folder)
    >>> config["llm"], config["tensors"]
    ({'source': 'owner/llm'}, {'adapter.safetensors': 4})
    """
    path = folder / CONFIG_FILE
    try:
        finish_replacement(folder, CONFIG_FILE)
    except ConfigError as error:
        raise ModelFolderError(str(error)) from error
    if not path.is_file():
        raise ModelFolderError(f"{folder}: no {CONFIG_FILE}; this is not a model folder, or saving was interrupted")
    try:
        check_files(folder, CONFIG_FILE)
        config = read_json(path)
    except ConfigError as error:
        raise ModelFolderError(str(error)) from error
    if config.get("format") != FORMAT:
        raise ModelFolderError(
            f"{path}: format {config.get('format')!r:.60}, but this version of audiolm_lite reads {FORMAT}; update it"
        )
    try:
        check_config(config)
    except UserError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    if not isinstance(config["llm"].get("source"), str):
        raise ConfigError(f'{path}: entry "llm" has no "source"; download the file again')
    return config


def resolve_source(source: str, name: str, folder: Path) -> str:
    """Resolve the source of a pretrained model in the configuration of a model folder.

    Parameters
    ----------
    source : str
        Path relative to the folder, absolute path or name on the Hugging Face hub.
    name : str
        Name of the entry, for the error message.
    folder : path
        The model folder.

    Returns
    -------
    str
        Absolute path, or name on the hub.

    Raises
    ------
    ModelFolderError
        An absolute path that does not exist on this machine, or a source that a model folder cannot have.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "llm").mkdir()
    >>> resolve_source("llm", "llm", folder) == str((folder / "llm").resolve())
    True
    >>> resolve_source("owner/llm", "llm", folder)
    'owner/llm'
    """
    try:
        path = check_source(source, folder)
    except ConfigError as error:
        raise ModelFolderError(f"{folder / CONFIG_FILE}: {name} source {error}") from error
    if path is not None:
        return str(path)
    if Path(source).is_absolute() and not Path(source).exists():
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: {name} source {source} does not exist on this machine; save the model with "
            "bundle=True, or write the path or hub name of the same pretrained model there"
        )
    return source


def local_folder(source: str | Path, name: str = "model", patterns: Iterable[str] = MODEL_FILES) -> Path:
    """Return a folder itself, or download a repository of the Hugging Face hub and return its local copy.

    Parameters
    ----------
    source : str or path
        Folder, backbone that is known by name, or "owner/name" on the hub.
    name : str
        What the source is, for the error message.
    patterns : iterable of str
        Patterns of the names of the files to download.

    Raises
    ------
    ModelFolderError
        Neither a folder nor a repository that can be downloaded.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> local_folder(str(folder)) == folder
    True
    """
    source = resolve(str(source))
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelFolderError(
            f"{name} {source}: neither a folder nor a repository that can be downloaded ({error}); check the name"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a model folder.

    Raises
    ------
    ModelFolderError
        The file is missing or damaged, or a symbolic link out of its folder.

    Examples
    --------
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> file = getfixture("tmp_path") / "adapter.safetensors"
    >>> save_file({"weight": torch.tensor([1.0, 2.0])}, file)
    >>> read_tensors(file)
    {'weight': tensor([1., 2.])}
    """
    if not path.is_file():
        raise ModelFolderError(f"{path}: no such file; download the model again")
    if not is_inside(path, path.parent.parent if path.parent.name == "lora" else path.parent):
        raise ModelFolderError(f"{path}: a symbolic link out of the model folder; copy the file instead")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path}: damaged ({error}); download it again") from error


def tensor_files(counts: Mapping[str, int]) -> list[str]:
    """Return the files with the tensors of a model folder, from the entry `tensors` of its configuration.

    Examples
    --------
    >>> tensor_files({"lora": 8, "adapter.safetensors": 4})
    ['adapter.safetensors', 'lora/adapter_model.safetensors']
    """
    return [f"{name}/adapter_model.safetensors" if name == "lora" else name for name in sorted(counts)]


def stored_name(name: str, component: str) -> str:
    """Name in a component's file of a model's tensor: the name that the component itself has for it, without PEFT.

    Parameters
    ----------
    name : str
        Name in the `AudioLanguageModel`.
    component : str
        "adapter", "llm" or "encoder".

    Examples
    --------
    >>> stored_name("llm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "llm")
    'model.layers.0.self_attn.q_proj.weight'
    """
    name = name.removeprefix(f"{component}.")
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".") if component == "llm" else name


def lora_is_trained(llm: nn.Module) -> bool:
    """Return whether any LoRA B matrix is not zero; if all are, the LoRA adds nothing.

    Examples
    --------
    >>> llm = nn.ModuleDict({"lora_A": nn.Linear(4, 2, bias=False), "lora_B": nn.Linear(2, 4, bias=False)})
    >>> _ = nn.init.zeros_(llm["lora_B"].weight)
    >>> lora_is_trained(llm)
    False
    >>> _ = nn.init.ones_(llm["lora_B"].weight)
    >>> lora_is_trained(llm)
    True
    """
    return any("lora_B" in name and bool(tensor.count_nonzero()) for name, tensor in llm.state_dict().items())
