"""What a run's result depends on: its settings, and the content of the data and weights that it starts from.

Paths do not count, because a checkout may move: files are compared by their content, pretrained models by the digest of
their weights, a feature store by what its features were computed with, an earlier stage by its tensors.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.digests import source_digests
from audiolm_lite.config.keys import REQUIRED, TRAINING_KEYS
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.registry import map_sources
from audiolm_lite.config.settings import settings
from audiolm_lite.data.manifest_table import content_hash
from audiolm_lite.data.row_checks import ManifestError
from audiolm_lite.features.store_format import FeatureStoreError, read_header
from audiolm_lite.hub.folder import CONFIG_FILE, read_config, tensor_files
from audiolm_lite.hub.released import released_or_path
from audiolm_lite.storage.hashes import sha256_of

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
INPUTS = "inputs"  # entry of the settings with the identities of data and weights
_BLOCKS = ("encoder", "llm")
_STORE_ENTRIES = ("fingerprint", "dtype", "long_audio")
_SHOWN = 12  # digits of a digest in messages
# Entries of the settings of checkpoints that follow from the data: the number of items, and a digest of their lengths.
_OF_DATA = ("items", "lengths")


def run_settings(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run (see `config.settings`), with the identities of its data and weights.

    Parameters
    ----------
    hparams : mapping
        Loaded keys.

    Returns
    -------
    dict
        JSON values. The entry `inputs` has `weights` (see `backbones.digests`), `files` (key and number -> path and
        hash), `features` (of the feature store) and `previous` (path and hash of the stage or model folder that this
        stage starts from). What is not on this machine is null or missing, and is not compared.

    Examples
    --------
    >>> manifest = getfixture("tmp_path") / "train.jsonl"
    >>> _ = manifest.write_text("a row")
    >>> first = run_settings({"seed": 3, "manifests": {"train": [str(manifest)]}})
    >>> _ = manifest.write_text("a new")
    >>> second = run_settings({"seed": 3, "manifests": {"train": [str(manifest)]}})
    >>> [line.replace(str(manifest), "train.jsonl") for line in difference(first, second)]
    ['the content of train.jsonl (manifests.train) has changed']
    """
    weights: dict[str, str] = {}
    for name in _BLOCKS:
        if isinstance(hparams.get(name), Mapping):
            weights |= source_digests(hparams[name], name)
    inputs = {
        "weights": weights,
        "files": _files(hparams),
        "features": None if hparams.get("train_encoder") else _features(hparams.get("feature_folder")),
        "previous": _previous(hparams),
    }
    return {**settings(hparams), INPUTS: json.loads(json.dumps(inputs))}


def previous_folder(hparams: Mapping[str, Any]) -> Path | None:
    """Output folder of the previous stage: `previous_stage` if set, otherwise by number; None for stage 1.

    Examples
    --------
    >>> print(previous_folder({"previous_stage": None, "output_root": "results", "stage": 3}))
    results/stage_2
    """
    if hparams["previous_stage"] is not None:
        return released_or_path(hparams["previous_stage"])
    return Path(hparams["output_root"]) / f"stage_{hparams['stage'] - 1}" if hparams["stage"] > 1 else None


def read_finished(folder: Path) -> dict[str, Any] | None:
    """Read what a finished stage has recorded about itself; None if the folder has none.

    Examples
    --------
    >>> print(read_finished(getfixture("tmp_path")))
    None
    """
    path = folder / FINISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def refused_changes(saved: Mapping[str, Any], current: Mapping[str, Any], accept_data: bool) -> str | None:
    """Describe why a run with settings `current` cannot go on with what one with settings `saved` has left.

    Parameters
    ----------
    saved, current : mapping
        As in `difference`.
    accept_data : bool
        Value of `accept_changed_data`: changed rows and audio files are logged and do not count.

    Returns
    -------
    str or None
        For a message; None if the run can go on.

    Examples
    --------
    >>> refused_changes({"epochs": 1, "items": 9}, {"epochs": 1, "items": 8}, accept_data=True)
    >>> refused_changes({"epochs": 1, "items": 9}, {"epochs": 1, "items": 8}, accept_data=False)
    'items was 9, is now 8 (if the data were changed on purpose, --accept_changed_data true goes on with them)'
    """
    different, of_data = difference(saved, current), data_changes(saved, current)
    if accept_data and of_data:
        logger.warning("Going on with changed data, as accept_changed_data is true: %s", "; ".join(of_data))
        different, of_data = [line for line in different if line not in of_data], []
    hint = " (if the data were changed on purpose, --accept_changed_data true goes on with them)" if of_data else ""
    return "; ".join(different) + hint if different else None


def data_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe the differences of two settings that come from changed rows and audio files.

    Examples
    --------
    >>> data_changes({"epochs": 1, "items": 9}, {"epochs": 2, "items": 8})
    ['items was 9, is now 8']
    """
    others = difference(saved, current, data=False)
    return [line for line in difference(saved, current) if line not in others]


def difference(saved: Mapping[str, Any], current: Mapping[str, Any], data: bool = True) -> list[str]:
    """Describe the entries in which two settings differ; a key that `saved` lacks had its default.

    Settings of an earlier version have no `inputs`; these are then not compared, which is logged. With `data` False,
    the content of manifests and question files is not compared, nor what follows from it.

    Examples
    --------
    >>> difference({"epochs": 1, "seed": 3}, {"epochs": 2, "seed": 3, "patience": None})
    ['epochs was 1, is now 2']
    """
    defaults = {name: TRAINING_KEYS[name].default for name in current if name in TRAINING_KEYS}
    defaults = {name: default for name, default in defaults.items() if default is not REQUIRED}
    saved, current = json_values({**defaults, **saved}), json_values(current)
    before, now = saved.pop(INPUTS, None), current.pop(INPUTS, None)
    different = []
    if before is not None and now is not None:
        different = input_difference(before, now, data)
        saved, current = comparable_sources(saved, before, now), comparable_sources(current, before, now)
    elif now is not None:
        logger.warning("Saved by an earlier version: whether data and weights are still the same is not known")
    lengths = [values.pop("lengths", None) for values in (saved, current)]
    if data and None not in lengths and len(set(lengths)) > 1:
        different.append("the lengths of its rows have changed (audio files, or the tokenizer)")
    names = [*current, *(name for name in saved if name not in current)]
    return [
        f"{name} was {saved.get(name)}, is now {current.get(name)}"
        for name in names
        if saved.get(name) != current.get(name) and (data or name not in _OF_DATA)
    ] + different


def input_difference(before: Mapping[str, Any], now: Mapping[str, Any], data: bool = True) -> list[str]:
    """Describe how the entries `inputs` of two settings differ, where both know the identity.

    With `data` False, the content of manifests and question files is not compared.

    Examples
    --------
    >>> before = {"weights": {"llm": "0a1b"}, "files": {}, "features": None, "previous": None}
    >>> input_difference(before, before | {"weights": {"llm": "2c3d"}})
    ['the weights of llm are others: digest 0a1b, now 2c3d']
    """
    different = [
        f"the weights of {where} are others: digest {digest[:_SHOWN]}, now {now['weights'][where][:_SHOWN]}"
        for where, digest in before["weights"].items()
        if digest != now["weights"].get(where, digest)
    ]
    for key in dict.fromkeys([*before["files"], *now["files"]]):
        old, new = before["files"].get(key, []), now["files"].get(key, [])
        if len(old) != len(new):
            different.append(f"{key} had {len(old)} files, has now {len(new)}")
        different += [
            f"the content of {path} ({key}) has changed"
            for (_, saved), (path, content) in zip(old, new)
            if data and None not in (saved, content) and saved != content
        ]
    if before["features"] and now["features"]:
        old, new = (flatten({name: side["features"][name] for name in _STORE_ENTRIES}) for side in (before, now))
        names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        if names:
            changes = ", ".join(f"{name} was {old.get(name)}, is now {new.get(name)}" for name in names)
            different.append(f"the feature store {now['features']['folder']} has other features: {changes}")
    if before["previous"] and now["previous"] and before["previous"][1] != now["previous"][1]:
        different.append(f"{now['previous'][0]} was trained again since")
    return different


def comparable_sources(values: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Replace paths in settings where `input_difference` compares the content of what they name.

    Parameters
    ----------
    values : mapping
        Settings without `inputs`.
    before, now : mapping
        The entries `inputs` of the two settings that are compared.

    Examples
    --------
    >>> inputs = {"weights": {"llm": "0a1b"}, "files": {}, "features": None, "previous": None}
    >>> comparable_sources({"llm": {"source": "/home/me/llm", "lora": None}}, inputs, inputs)
    {'llm': {'source': '', 'lora': None}}
    """
    known = before["weights"].keys() & now["weights"].keys()
    stored = bool(before["features"] and now["features"])  # the encoder is the one of the features

    def hide(source: str, where: str) -> str:
        return "" if where in known or (stored and where.split("/")[0] == "encoder") else source

    values = dict(values)
    for name in _BLOCKS:
        if isinstance(values.get(name), Mapping):
            values[name] = map_sources(values[name], hide, name)
            if f"{name}/tokenizer" in known:
                values[name].pop("tokenizer", None)
    if before["previous"] and now["previous"]:
        values.pop("previous_stage", None)
    return values


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values as writing and reading JSON does, so that tuples and lists compare equal.

    Examples
    --------
    >>> json_values({"betas": (0.9, 0.999)})
    {'betas': [0.9, 0.999]}
    """
    return json.loads(json.dumps(values))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one with dotted names.

    Examples
    --------
    >>> flatten({"fingerprint": {"weights": "0a", "pool": 2}, "dtype": "int8"})
    {'fingerprint.weights': '0a', 'fingerprint.pool': 2, 'dtype': 'int8'}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _files(hparams: Mapping[str, Any]) -> dict[str, list[tuple[str, str | None]]]:
    """Paths and hashes of the manifests and question files that training and validation read."""
    files: dict[str, list[tuple[str, str | None]]] = {}
    for split in ("train", "valid"):
        if entries := (hparams.get("manifests") or {}).get(split):
            paths = split_entries(entries)[0]
            files[f"manifests.{split}"] = [(path, _content(path)) for path in paths]
        if questions := (hparams.get("question_files") or {}).get(split):
            files[f"question_files.{split}"] = [(path, _content(path)) for path in questions]
    return files


def _content(path: str) -> str | None:
    try:
        return content_hash(path)
    except ManifestError:  # reading the rows reports it
        return None


def _features(folder: str | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    try:
        header = read_header(Path(folder))
    except FeatureStoreError:  # opening the store reports it
        return None
    return {"folder": str(folder), **{name: header.get(name) for name in _STORE_ENTRIES}}


def _previous(hparams: Mapping[str, Any]) -> tuple[str, str] | None:
    if not {"previous_stage", "stage"} <= hparams.keys() or (folder := previous_folder(hparams)) is None:
        return None
    if finished := read_finished(folder):
        return str(folder), finished["sha256"]
    if not (folder / CONFIG_FILE).is_file():
        return None
    files = [folder / name for name in tensor_files(read_config(folder)["tensors"])]
    return (str(folder), sha256_of(*files)) if all(path.is_file() for path in files) else None
