"""What a model folder may contain: a closed set of entries, sources and files, checked before anything else is read.

Model folders are shared. So nothing in one decides which code runs or which files outside of it are read: its names are
compared with the lists here, symbolic links may not leave it, and its folders of pretrained models contain safetensors,
JSON, and texts that are not read (licences, model cards).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.backbones.licences import is_licence
from audiolm_lite.backbones.untrusted import (
    CONFIGURATIONS,
    INDEX,
    LORA_CONFIG,
    check_entries,
    check_index,
    check_sizes,
    is_inside,
    read_json,
)
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import LONG_AUDIO
from audiolm_lite.decoding.options import read_options

CTC_HEAD_FILE = "ctc_head.safetensors"
TENSOR_FILES = ("adapter.safetensors", "llm.safetensors", "encoder.safetensors", CTC_HEAD_FILE)
LORA_FILES = (LORA_CONFIG, "adapter_model.safetensors")
PRETRAINED_FOLDERS = ("encoder", "llm")
MOST_TOKENS, MOST_BEAMS = 2**17, 2**8  # of an answer
_REQUIRED = {
    "encoder": dict,
    "adapter": dict,
    "llm": dict,
    "template": str,
    "generation": dict,
    "instructions": dict,
    "tensors": dict,
}
_OPTIONAL = {"format": int, "backbones": dict, "licences": dict, "long_audio": str}
_INSTRUCTIONS = ("transcribe", "caption")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def check_config(config: Mapping[str, Any]) -> None:
    """Check the entries of a model folder's configuration, except for sources: see `check_source`.

    Parameters
    ----------
    config : mapping
        Content of `audiolm_lite.json`.

    Raises
    ------
    ConfigError
        An entry is unknown, missing or of another kind, a name under `tensors` is not that of a file of the format, or
        a number cannot be meant. The message begins with the entry.
    GenerationError
        `generation` has an invalid option.

    Examples
    --------
    >>> blocks = {"encoder": {}, "adapter": {}, "llm": {}, "template": "{audio}", "generation": {}, "instructions": {}}
    >>> check_config({**blocks, "tensors": {"adapter.safetensors": 4}})
    >>> check_config({**blocks, "tensors": {"../x": 4}})
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: entry "tensors": '../x' is not a file of a model folder; ...
    """
    for name, kind in _REQUIRED.items():
        if not isinstance(config.get(name), kind):
            raise ConfigError(f'entry "{name}" must be a {kind.__name__}; download the file again')
    for name, value in config.items():
        if name not in _REQUIRED and not isinstance(value, _OPTIONAL.get(name, ())):
            raise ConfigError(f"entry {name!r:.60} is unknown or of another kind; update audiolm_lite")
    if config.get("long_audio", "reject") not in LONG_AUDIO:
        raise ConfigError(f'entry "long_audio": {config["long_audio"]!r:.60} is not one of {", ".join(LONG_AUDIO)}')
    for name, count in config["tensors"].items():
        if name not in (*TENSOR_FILES, "lora"):
            known = ", ".join((*TENSOR_FILES, "lora"))
            raise ConfigError(f'entry "tensors": {name!r:.60} is not a file of a model folder; it takes {known}')
        if type(count) is not int or not 0 <= count < 2**20:
            raise ConfigError(f'entry "tensors": {name} has {count!r:.60} tensors; download the file again')
    for name, text in config["instructions"].items():
        if name not in _INSTRUCTIONS or not isinstance(text, str):
            raise ConfigError(
                f'entry "instructions": {name!r:.60} is not one of {", ".join(_INSTRUCTIONS)} with a text'
            )
    for name, digest in config.get("backbones", {}).items():
        block = re.fullmatch(r"(encoder|llm)(/[\w-]+)*", name)
        if not (name in KNOWN or block) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise ConfigError(f'entry "backbones": {name!r:.60} is not a pretrained model with a digest; remove it')
    for name, copy in config.get("licences", {}).items():
        if name.split("/")[0] not in PRETRAINED_FOLDERS or not _is_licence_entry(copy):
            raise ConfigError(f'entry "licences": {name!r:.60} is not a copied model with its licence; remove it')
    for name in ("encoder", "adapter", "llm"):
        check_entries(Path(f'entry "{name}"'), config[name])
        check_sizes(f'entry "{name}"', config[name])
        _check_numbers(name, config[name])
    if not isinstance(config["llm"].get("tokenizer") or "", str):
        raise ConfigError('entry "llm": tokenizer must be a name or a folder; download the file again')
    lora = config["llm"].get("lora")
    if lora is not None and not _is_lora(lora):
        raise ConfigError(f'entry "llm": lora is {lora!r:.100}, without numbers r and alpha; download the file again')
    options = read_options(config["generation"])
    if options.beams > MOST_BEAMS:
        raise ConfigError(f'entry "generation": beams is {options.beams}; it must be at most {MOST_BEAMS}')
    if max(options.max_new_tokens, options.token_allowance) > MOST_TOKENS:
        raise ConfigError(f'entry "generation": more than {MOST_TOKENS} tokens for an answer; lower max_new_tokens')


def _is_lora(lora: Any) -> bool:
    return isinstance(lora, Mapping) and all(type(lora.get(name)) in (int, float) for name in ("r", "alpha"))


def _is_licence_entry(copy: Any) -> bool:
    """Whether this is what `hub.bundle.copy_pretrained` returns; a model card has these texts."""
    if not isinstance(copy, dict) or set(copy) != {"model", "licence", "files"} or not isinstance(copy["files"], list):
        return False
    texts = [copy["model"], copy["licence"] or "unknown", *copy["files"]]
    return all(isinstance(text, str) and re.fullmatch(r"[\w ./+()-]{1,200}", text) for text in texts)


def _check_numbers(name: str, content: Any) -> None:
    """Refuse numbers that are not finite or no size or rate of a model, whatever their entry is called."""
    if isinstance(content, Mapping):
        for entry, value in content.items():
            _check_numbers(f"{name}, {entry}", value)
    elif isinstance(content, list):
        for value in content:
            _check_numbers(name, value)
    elif isinstance(content, (int, float)) and not (math.isfinite(content) and abs(content) <= 2**40):
        raise ConfigError(f'entry "{name}": {content!r:.40} is not a number of a model; download the file again')


def check_source(source: Any, folder: Path) -> Path | None:
    """Check a source in a model folder's configuration.

    Parameters
    ----------
    source : str
        Folder of a pretrained model in the model folder, absolute path, or name.
    folder : Path
        The model folder.

    Returns
    -------
    Path or None
        The path, without symbolic links, of a folder in the model folder; None for other sources.

    Raises
    ------
    ConfigError
        A path that leaves the model folder or is not a folder of a pretrained model, a special file, or no name.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "llm").mkdir()
    >>> check_source("llm", folder) == (folder / "llm").resolve(), check_source("owner/llm", folder)
    (True, None)
    >>> check_source("../llm", folder)
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: '../llm' is neither a folder of a pretrained model in the model folder ...
    """
    refused = ConfigError(
        f"{source!r:.100} is neither a folder of a pretrained model in the model folder nor an absolute path nor "
        "the name of a model; save the model again with bundle=True"
    )
    if not isinstance(source, str) or not source or "\0" in source:
        raise refused
    given, path, stored = Path(source), folder / source, False
    if not given.is_absolute():
        stored = path.exists() or path.is_symlink()
        if stored:
            given = path
        elif not _NAME.fullmatch(source):
            raise refused
    # A name may also be a path, relative to where the program runs.
    target = given.resolve()
    if stored or (target.exists() and target.is_relative_to(folder.resolve())):
        parts = target.relative_to(folder.resolve()).parts if target.is_relative_to(folder.resolve()) else ()
        if not parts or parts[0] not in PRETRAINED_FOLDERS or not target.is_dir():
            raise refused
        return target
    if given.is_absolute() and target.exists() and not (target.is_dir() or target.is_file()):
        raise refused
    return None


def check_files(folder: Path, config_file: str) -> None:
    """Check the files of a model folder that loading reads or sharing copies.

    Parameters
    ----------
    folder : Path
        The model folder. Other files in it, such as the checkpoints and logs of a stage, are not read and not checked.
    config_file : str
        Name of its configuration file.

    Raises
    ------
    ConfigError
        A file that a model folder cannot have, a symbolic link out of the folder, a special file, or a configuration of
        a pretrained model that names code, other files, or impossible sizes.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "llm").mkdir()
    >>> _ = (folder / "llm" / "pytorch_model.bin").write_bytes(b"")
    >>> check_files(folder, "audiolm_lite.json")
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: .../llm/pytorch_model.bin: a model folder has safetensors and JSON only; ...
    """
    for name in (config_file, *TENSOR_FILES, "README.md", "metrics.json"):
        _check_file(folder / name, folder)
    for name in ("lora", *PRETRAINED_FOLDERS):
        for path in _walk(folder / name, folder):
            _check_file(path, folder)
            allowed = path.name in LORA_FILES if name == "lora" else _is_pretrained_file(path.name)
            if not (allowed or path.name in ("README.md", ".gitattributes") or is_licence(path.name)):
                raise ConfigError(
                    f"{path}: a model folder has safetensors and JSON only; save the model again with bundle=True, or "
                    "delete the file"
                )
            if path.name in CONFIGURATIONS:
                _check_configuration(path)
            elif path.name == INDEX:
                check_index(path)
            elif path.name == LORA_CONFIG:
                read_json(path)


def _is_pretrained_file(name: str) -> bool:
    return name.endswith((".json", ".safetensors")) and name not in LORA_FILES


def _walk(folder: Path, root: Path) -> list[Path]:
    """Files of a folder and of its folders. A symbolic link to a folder is taken as a file, which it is not."""
    if folder.is_symlink() and not is_inside(folder, root):
        raise ConfigError(f"{folder}: a symbolic link out of the model folder; copy the files instead")
    if not folder.is_dir():
        return []
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        files += _walk(path, root) if path.is_dir() and not path.is_symlink() else [path]
    return files


def _check_file(path: Path, folder: Path) -> None:
    if not is_inside(path, folder):
        raise ConfigError(f"{path}: a symbolic link out of the model folder; copy the file instead")
    if (path.exists() or path.is_symlink()) and not path.is_file():
        raise ConfigError(f"{path}: not a regular file; download the model again")


def _check_configuration(path: Path) -> None:
    content = read_json(path)
    check_entries(path, content)
    if path.name == "tokenizer_config.json":
        # Older versions of transformers open the files that these entries name.
        if files := [name for name, value in content.items() if name.endswith("_file") and value]:
            raise ConfigError(f"{path}: {files[0]} names a file; remove the entry")
    else:
        check_sizes(str(path), content)
