"""Replacing the model in a folder at once, although it has several files and the folder has others, such as logs.

The new files are written to the folder `.new_model` of the model folder. The list of them, `files.json`, is written
last and atomically: without it, the new files do not count. With it, they are moved to their places by whoever saves or
reads the folder next. So a process that is killed at any moment leaves the old model or the new one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from audiolm_lite.backbones.untrusted import is_inside, read_json
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.hub.contents import PRETRAINED_FOLDERS, TENSOR_FILES
from audiolm_lite.storage.atomic import move, write_json

PENDING, LIST = ".new_model", "files.json"


@contextmanager
def replaced_model(folder: Path, config_file: str, copies: list[str]) -> Iterator[Path]:
    """Yield the folder to write a model to, which replaces the one in `folder` at the end.

    Parameters
    ----------
    folder : Path
        The model folder; created if it is missing. If an exception is raised, its model stays as it is.
    config_file : str
        Name of the configuration file, which is moved last.
    copies : list of str
        Folders of pretrained models that are written, such as "llm" and "llm/tokenizer"; may be filled while they are.
        Other files in these folders are removed, as in that of the LoRA.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for content in ("old", "new"):
    ...     with replaced_model(folder, "audiolm_lite.json", []) as unfinished:
    ...         _ = (unfinished / "audiolm_lite.json").write_text(content)
    >>> (folder / "audiolm_lite.json").read_text(), [path.name for path in folder.iterdir()]
    ('new', ['audiolm_lite.json'])
    """
    finish_replacement(folder, config_file)
    pending = folder / PENDING
    shutil.rmtree(pending, ignore_errors=True)
    pending.mkdir(parents=True)
    try:
        yield pending
        files = [path.relative_to(pending).as_posix() for path in pending.rglob("*") if path.is_file()]
        files.sort(key=lambda name: (name == config_file, name))
        write_json(pending / LIST, {"files": files, "copies": ["lora", *copies]})
    except BaseException:
        _remove(pending)
        raise
    finish_replacement(folder, config_file)


def finish_replacement(folder: Path, config_file: str) -> None:
    """Move the files of a new model to their places, if a process was killed before it could; otherwise do nothing.

    Parameters
    ----------
    folder : Path
        The model folder. It may be a stranger's: only files that a model folder can have are moved or removed.
    config_file : str
        Name of the configuration file.

    Raises
    ------
    ConfigError
        The list of files is not one that this library writes, or the files cannot be moved.

    Examples
    --------
    >>> finish_replacement(getfixture("tmp_path"), "audiolm_lite.json")
    """
    pending = folder / PENDING
    if not (pending / LIST).is_file():
        return
    files, copies = _read_list(pending / LIST, folder, config_file)
    try:
        for name in TENSOR_FILES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
        for copy in copies:
            for path in _files(folder / copy):
                if f"{copy}/{path.name}" not in files:
                    path.unlink(missing_ok=True)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # moved already, by a process that was killed
                move(pending / name, folder / name)
        with suppress(OSError):  # not empty, or there is none
            (folder / "lora").rmdir()
        _remove(pending)
    except OSError as error:
        raise ConfigError(
            f"{folder}: saving a model was interrupted and cannot be finished ({error}); load it once with permission "
            "to write there"
        ) from error


def _read_list(path: Path, folder: Path, config_file: str) -> tuple[list[str], list[str]]:
    content: Any = read_json(path)
    if is_inside(path, folder) and isinstance(content, dict):
        files, copies = content.get("files"), content.get("copies")
        if isinstance(files, list) and isinstance(copies, list):
            allowed = all(_is_allowed(name, folder, config_file) for name in files)
            if allowed and all(_is_allowed(f"{name}/x", folder, config_file) for name in copies):
                return files, copies
    raise ConfigError(f"{path}: not a list of the files of a model; delete {path.parent}")


def _is_allowed(name: Any, folder: Path, config_file: str) -> bool:
    """Whether this is the name of a file that a model folder can have, without a link that leads out of the folder."""
    if not isinstance(name, str) or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or path.as_posix() != name:
        return False
    known = (config_file, *TENSOR_FILES) if len(path.parts) == 1 else ("lora", *PRETRAINED_FOLDERS)
    parents = [(start / name).parent for start in (folder, folder / PENDING)]
    return path.parts[0] in known and all(is_inside(parent, folder) for parent in parents)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.is_dir() or path.is_symlink()] if folder.is_dir() else []


def _remove(pending: Path) -> None:
    """Remove the new files; the list first, since without it the others do not count."""
    (pending / LIST).unlink(missing_ok=True)
    shutil.rmtree(pending, ignore_errors=True)
