"""Files of models that other people publish: what is refused before a library reads them.

A configuration is data. It selects among the classes of this library and of transformers, and never names code, a file
outside of its folder or a size that cannot be meant. The functions here read JSON only. `trust_remote_code=False` at
each call of transformers is the second guard.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import ConfigError

LARGEST_JSON = 16 * 2**20  # bytes; vocabularies and tokenizers, which may be larger, are not read here
DEEPEST_JSON = 40
LARGEST_SIZE = 2**25  # vocabularies have up to 2**19 entries, positions up to 10**7
MOST_MODULES = 2**12  # layers, blocks and experts, each of which takes time to build
MOST_SECONDS = 3600  # of a clip, as which a spectrogram may be padded
# Files that decide which classes are built and which further files are read.
CONFIGURATIONS = (
    *("config.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"),
)
INDEX = "model.safetensors.index.json"
LORA_CONFIG = "adapter_config.json"
MODULES = "modules.json"  # of a sentence-transformers model

_SIZE = re.compile(
    r"(size|dims?|positions|embeddings|bins|channels|heads|kernel|stride|rank|groups|buckets|mels|queries|streams|pool|"
    r"expansion|factor|n_fft|hop_length|chunk_length|sampling_rate)$|^(num|n|d|conv)_"
)
_MODULES = re.compile(r"(layers?|blocks|experts|codebooks)$")
# Sizes that something is divided by.
_POSITIVE = ("stride", "conv_stride", "pool", "window", "hop_length", "n_fft", "chunk_length", "sampling_rate")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file with a mapping.

    Raises
    ------
    ConfigError
        Not a regular file, too large, nested too deeply, not valid JSON, or not a mapping.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "config.json"
    >>> _ = file.write_text('{"hidden_size": 8}')
    >>> read_json(file)
    {'hidden_size': 8}
    >>> _ = file.write_text("[" * 100_000)
    >>> read_json(file)
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: .../config.json: nested more than 40 levels deep; download it again
    """
    content = _load_json(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object; download it again")
    return content


def _load_json(path: Path) -> Any:
    """Content of a JSON file that is not too large and not nested too deeply."""
    if not path.is_file():
        raise ConfigError(f"{path}: not a regular file; download it again")
    if path.stat().st_size > LARGEST_JSON:
        raise ConfigError(f"{path}: larger than {LARGEST_JSON >> 20} MiB, which no configuration is; download it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigError(f"{path}: nested more than {DEEPEST_JSON} levels deep; download it again") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); download it again") from error
    level = [content]
    for _ in range(DEEPEST_JSON):
        values = [value.values() if isinstance(value, dict) else value for value in level]
        level = [inner for group in values for inner in group if isinstance(inner, (dict, list))]
        if not level:
            break
    else:
        raise ConfigError(f"{path}: nested more than {DEEPEST_JSON} levels deep; download it again")
    return content


def check_sizes(where: str, content: Any, name: str = "") -> None:
    """Refuse sizes in a configuration that are negative or larger than those of any model, at any depth.

    Parameters
    ----------
    where : str
        File or block, for the message.
    content : mapping, list or value
        Read by `read_json`, which limits its depth, or the block of a component.
    name : str
        Entry that has `content`; numbers are checked in entries whose names are those of sizes.

    Raises
    ------
    ConfigError
        The message names the entry.

    Examples
    --------
    >>> check_sizes("config.json", {"text_config": {"hidden_size": 4096, "pad_token_id": -1, "rope_theta": 5e8}})
    >>> check_sizes("config.json", {"text_config": {"hidden_size": -4096}})
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: config.json: hidden_size is -4096; ...
    """
    if isinstance(content, Mapping):
        for entry, value in content.items():
            check_sizes(where, value, str(entry))
        return
    if isinstance(content, (list, tuple)):
        if name != "layers" and len(content) > MOST_MODULES and _is_size(name):
            raise ConfigError(f"{where}: {name} has {len(content)} entries; download the file again")
        for value in content:
            if name != "layers" or isinstance(value, (dict, list)):  # blocks to return, -1 the last
                check_sizes(where, value, name)
        return
    if type(content) not in (int, float) or not _is_size(name):
        return
    largest = MOST_SECONDS if name.endswith("_seconds") else MOST_MODULES if _MODULES.search(name) else LARGEST_SIZE
    least = 1 if name in _POSITIVE else 0
    if not least <= content <= largest:
        raise ConfigError(
            f"{where}: {name} is {content}; it must be from {least} to {largest}. Download the file again"
        )


def _is_size(name: str) -> bool:
    if name in _POSITIVE or name.endswith("_seconds"):
        return True
    return bool(_SIZE.search(name) or _MODULES.search(name)) and not name.endswith(("_id", "_ids", "_token"))


def check_entries(path: Path, content: Mapping[str, Any], *, ignore_code: bool = False) -> None:
    """Refuse entries of a configuration that name code or files.

    Parameters
    ----------
    path : Path
        The file, for the message.
    content : mapping
        Its content.
    ignore_code : bool
        Accept an `auto_map`, the code that a repository offers for its model, if transformers has a class of its own
        for this type of model. That class is then used, and the repository's code is not.

    Raises
    ------
    ConfigError
        The message names the entry.

    Examples
    --------
    >>> check_entries(Path("config.json"), {"model_type": "wav2vec2", "auto_map": {"AutoModel": "evil.Model"}})
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: config.json: auto_map names code of the repository, which is never run; ...
    """
    if content.get("auto_map") and not (ignore_code and _is_known(path, content)):
        raise ConfigError(
            f"{path}: auto_map names code of the repository, which is never run; use a model whose type transformers "
            "has itself, or remove the entry if this is one"
        )
    for name, value in content.items():
        if isinstance(value, Mapping):
            check_entries(path, value, ignore_code=ignore_code)
        named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if name == "transformers_weights" and value:
            raise ConfigError(f"{path}: {name} names a file of weights, which is not supported; remove it")
        # Kernels of the hub are compiled code; the tokenizers' files have fixed names.
        if name.endswith(("_implementation", "fast_tokenizer_files")) and any("/" in str(entry) for entry in named):
            raise ConfigError(f"{path}: {name} {value!r} names code or files elsewhere, which are not read; remove it")


def _is_known(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether transformers has a class of its own; a tokenizer without one is an error when it is loaded."""
    if path.name != "config.json":
        return True
    from transformers import CONFIG_MAPPING

    return content.get("model_type") in CONFIG_MAPPING


def check_published(where: str, source: str, *, ignore_code: bool = False) -> None:
    """Check the configuration files of a pretrained model before transformers reads them.

    Parameters
    ----------
    where : str
        The block that names it, for messages.
    source : str
        Folder, or name on the Hugging Face hub. One that cannot be found is not an error here.
    ignore_code : bool
        See `check_entries`.

    Raises
    ------
    ConfigError
        See `read_json`, `check_entries`, `check_sizes`; or the source is a LoRA, or its index names files elsewhere.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}')
    >>> check_published("llm", str(folder))
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: llm: .../config.json: hidden_size is -1; ...
    """
    folder = _folder(source)
    if folder is None:
        return
    try:
        for name in CONFIGURATIONS:
            if _present(path := folder / name):
                content = read_json(path)
                check_entries(path, content, ignore_code=ignore_code)
                if name != "tokenizer_config.json":  # its largest length may be any number
                    check_sizes(str(path), content)
        if _present(folder / INDEX):
            check_index(folder / INDEX)
        if _present(folder / LORA_CONFIG):
            raise ConfigError(f"{source} has a LoRA ({LORA_CONFIG}), which names a model itself; name a merged model")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_modules(where: str, source: str) -> None:
    """Refuse a sentence-transformers model whose list of modules names classes of other packages.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "modules.json").write_text('[{"idx": 0, "path": "", "type": "evil.Model"}]')
    >>> check_modules("matcher", str(folder))
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: matcher: .../modules.json: 'evil.Model' is not a class of ...
    """
    folder = _folder(source)
    if folder is None or not _present(path := folder / MODULES):
        return
    try:
        modules = _load_json(path)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for module in modules if isinstance(modules, list) else [modules]:
        named = module.get("type") if isinstance(module, dict) else None
        if not re.fullmatch(r"sentence_transformers\.[\w.]+", str(named)):
            raise ConfigError(
                f"{where}: {path}: {named!r} is not a class of sentence-transformers, which are all that run"
            )


def check_index(path: Path) -> None:
    """Refuse an index of sharded weights that names other files than those next to it.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "model.safetensors.index.json"
    >>> _ = file.write_text('{"weight_map": {"norm.weight": "../other.safetensors"}}')
    >>> check_index(file)
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: .../model.safetensors.index.json: '../other.safetensors' is not a file ...
    """
    shards = read_json(path).get("weight_map")
    for shard in set(map(str, shards.values())) if isinstance(shards, dict) else ():
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ConfigError(f"{path}: {shard!r} is not a file next to it; download it again")


def _folder(source: str) -> Path | None:
    """Folder with the configuration files of a pretrained model; None if it cannot be found, which its loader reports.

    A repository of the hub is looked up once for all files. Without a connection, the local copy is used at once.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, allow_patterns=[*CONFIGURATIONS, INDEX, LORA_CONFIG, MODULES]))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def _present(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder after all symbolic links, which in the hub's own cache lead to its blobs.

    Examples
    --------
    >>> folder = getfixture("tmp_path") / "model"
    >>> folder.mkdir()
    >>> (folder / "config.json").symlink_to("/etc/passwd")
    >>> is_inside(folder / "config.json", folder), is_inside(folder / "adapter.safetensors", folder)
    (False, True)
    """
    target, root = path.resolve(), folder.resolve()
    if target.is_relative_to(root):
        return True
    return root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
