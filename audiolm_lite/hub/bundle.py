"""Copies of pretrained models in a model folder: safetensors and JSON, with the licences of the models.

Entries of their configurations that a model folder cannot have (`hub.contents`) are removed in the copies. A tokenizer
in another form is written as `tokenizer.json`, a chat template into `tokenizer_config.json`.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.licences import LICENCE_PATTERNS, is_licence, licence_of
from audiolm_lite.backbones.untrusted import CONFIGURATIONS, check_published, is_inside, read_json
from audiolm_lite.config.errors import describe
from audiolm_lite.hub.contents import LORA_FILES
from audiolm_lite.hub.folder import ModelFolderError, local_folder
from audiolm_lite.storage.atomic import write_json

# What is downloaded of a pretrained model that is copied: no pickles, no code.
_DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", *LICENCE_PATTERNS)
# Files of tokenizers that are no JSON.
_TOKENIZERS = ("*.model", "*.tiktoken", "vocab.txt", "merges.txt")


def copy_pretrained(source: str, target: Path, name: str) -> dict[str, Any]:
    """Copy a pretrained model, or the tokenizer of one, into a model folder.

    Parameters
    ----------
    source : str
        Folder, name of a backbone, or name on the Hugging Face hub.
    target : Path
        Folder to write; what is there is replaced.
    name : str
        Entry of the configuration that names it, for example "llm" or "llm/tokenizer".

    Returns
    -------
    dict
        `model` (its name), `licence` (None if it is not stated) and `files` (names of its licences in `target`).

    Raises
    ------
    ModelFolderError
        It has no safetensors file, cannot be downloaded, or its tokenizer cannot be written as JSON.
    ConfigError
        It has something that this library refuses to load, see `backbones.untrusted`.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "llama").mkdir()
    >>> for file in ("model.safetensors", "config.json", "pytorch_model.bin", "LICENSE.txt", "USE_POLICY.md"):
    ...     _ = (folder / "llama" / file).write_text("{}")
    >>> copy_pretrained(str(folder / "llama"), folder / "model" / "llm", "llm")
    {'model': 'llama', 'licence': None, 'files': ['LICENSE.txt', 'USE_POLICY.md']}
    >>> sorted(file.name for file in (folder / "model" / "llm").iterdir())
    ['LICENSE.txt', 'USE_POLICY.md', 'config.json', 'model.safetensors']
    """
    is_tokenizer = name.endswith("/tokenizer")
    if Path(source).expanduser().is_file():
        raise ModelFolderError(f"{source}: bundle=True copies models in safetensors, and this is a single file")
    folder = local_folder(source, name, _DOWNLOADED)
    check_published(name, str(folder), ignore_code=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if outside := [path for path in files if not is_inside(path, folder)]:
        raise ModelFolderError(f"{outside[0]}: a symbolic link out of its folder; copy the file instead")
    if not is_tokenizer and not any(path.suffix == ".safetensors" for path in files):
        raise ModelFolderError(f"{folder}: no .safetensors file, which bundle=True needs; convert the model first")
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if path.is_file() or path.is_symlink():  # folders are copies of other models: llm/tokenizer
            path.unlink()
    licences = [path.name for path in files if is_licence(path.name)]
    for path in files:
        weights = path.suffix == ".safetensors" and not is_tokenizer
        if path.name not in LORA_FILES and (weights or path.suffix == ".json" or path.name in licences):
            _copy(path, target / path.name)
    _copy_tokenizer(folder, target)
    model = Path(source).name if Path(source).expanduser().exists() else source
    return {"model": model, "licence": licence_of(source), "files": licences}


def _copy(path: Path, target: Path) -> None:
    if path.name in CONFIGURATIONS:
        write_json(target, _without_code(read_json(path)))
    else:
        shutil.copyfile(path, target)


def _without_code(content: dict[str, Any]) -> dict[str, Any]:
    """Configuration without the entries that name code, and the files of a tokenizer."""
    kept = {name: value for name, value in content.items() if name != "auto_map" and not name.endswith("_file")}
    return {name: _without_code(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """Write a tokenizer that has other files than JSON as JSON, and its chat template into its configuration."""
    others = sorted({path for pattern in _TOKENIZERS for path in folder.glob(pattern) if not is_licence(path.name)})
    if others and not any((target / file).is_file() for file in ("tokenizer.json", "tekken.json")):
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as written:
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                tokenizer.save_pretrained(written)
            except Exception as error:  # the tokenizers' own library raises plain exceptions
                raise ModelFolderError(f"{others[0]}: not a tokenizer that loads ({describe(error)})") from error
            if not (Path(written) / "tokenizer.json").is_file():
                raise ModelFolderError(
                    f"{others[0]}: bundle=True needs a tokenizer.json, and transformers has no fast tokenizer of this "
                    "type; name another tokenizer"
                )
            for path in Path(written).glob("*.json"):
                _copy(path, target / path.name)
    template = folder / "chat_template.jinja"
    if template.is_file():
        path = target / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        write_json(path, {**settings, "chat_template": template.read_text(encoding="utf-8")})
