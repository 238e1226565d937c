"""Stage handover: what a finished stage writes, and how the next stage starts from it.

The folder of a finished stage contains `trained.safetensors`, with the tensors of its best checkpoint that this stage
or an earlier one has trained, and `finished.json` with settings, metrics and hashes, which is written last.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import Tensor, nn

from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import with_defaults
from audiolm_lite.hub.folder import CONFIG_FILE, read_config
from audiolm_lite.hub.load import load_trained, read_ctc_head
from audiolm_lite.hub.released import check_backbones, other_weights
from audiolm_lite.modeling.lora import lora_difference
from audiolm_lite.storage.atomic import atomic_path, write_json
from audiolm_lite.storage.hashes import sha256_of
from audiolm_lite.training.checkpoint import copy_tensors, save_tensors
from audiolm_lite.training.run_identity import (
    FINISHED,
    INPUTS,
    comparable_sources,
    difference,
    input_difference,
    json_values,
    previous_folder,
    read_finished,
    refused_changes,
    run_settings,
)
from audiolm_lite.training.trainable import trainable_names

logger = logging.getLogger(__name__)

TENSORS = "trained.safetensors"
# Blocks that must be equal in consecutive stages: another value makes another model, even with the same shapes.
EQUAL_BLOCKS = ("encoder", "adapter")


def load_previous_stage(model: nn.Module, hparams: Mapping[str, Any]) -> list[str]:
    """Load the tensors that the previous stage has trained, with SpeechBrain's Pretrainer.

    `previous_stage` may also name a model folder, such as a converted checkpoint, or a released model.

    Returns
    -------
    list of str
        Names of the loaded tensors; empty for a first stage.

    Raises
    ------
    ConfigError
        The previous stage is not finished, or has another encoder, adapter or LLM. The message says what to run.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> blocks = {"encoder": {"type": "logmel"}, "adapter": {"type": "identity"}, "llm": {"source": "owner/llm"}}
    >>> hparams = {"output_folder": folder / "stage_1", "stage": 1, "previous_stage": None, **blocks}
    >>> save_stage(nn.ModuleDict({"adapter": nn.Linear(2, 2)}), hparams, {}, inherited=[], summary={})
    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 2)})
    >>> load_previous_stage(model, {**hparams, "stage": 2, "output_root": folder})
    ['adapter.bias', 'adapter.weight']
    """
    folder = previous_folder(hparams)
    if folder is None:
        return []
    finished = read_finished(folder)
    if finished is None and (folder / CONFIG_FILE).is_file():
        return _load_model_folder(model, hparams, folder)
    if finished is None or not (folder / TENSORS).is_file():
        raise ConfigError(
            f"stage {hparams['stage']} starts from {folder}, which contains no finished stage. Run it first: "
            + _command(hparams)
        )
    if different := _different_models(finished["settings"], json_values(run_settings(hparams))):
        raise ConfigError(
            f"stage {hparams['stage']} cannot start from {folder}: {'; '.join(different)}. "
            f"Use the same blocks in both YAML files, or run again: {_command(hparams)}"
        )
    pretrainer = Pretrainer(
        loadables={"model": model}, paths={"model": str(folder / TENSORS)}, custom_hooks={"model": _load_hook}
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    with safe_open(folder / TENSORS, framework="pt") as file:
        return list(file.keys())


def previous_ctc_head(hparams: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Tensors of the CTC head in the folder that a stage starts from (see `modeling.ctc`), None where it has none.

    Raises
    ------
    ModelFolderError
        The file is damaged or has other tensors.

    Examples
    --------
    >>> print(previous_ctc_head({"previous_stage": None, "output_root": "results", "stage": 1}))
    None
    """
    folder = previous_folder(hparams)
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return None
    return read_ctc_head(folder, read_config(folder)["tensors"])


def _different_models(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe the settings of two stages that make them stages of different models."""
    before, now = saved.get(INPUTS), current[INPUTS]
    different = []
    if before is not None:
        different = input_difference(_model_inputs(before), _model_inputs(now))
        saved, current = comparable_sources(saved, before, now), comparable_sources(current, before, now)
    pairs = {name: (saved[name], current[name]) for name in EQUAL_BLOCKS}
    pairs["llm source"] = (saved["llm"]["source"], current["llm"]["source"])
    different += [
        f"{name} is {old} in the previous stage and {new} in this one"
        for name, (old, new) in pairs.items()
        if old != new
    ]
    return different + lora_difference(saved["llm"].get("lora"), current["llm"].get("lora"), "llm.lora")


def _model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Identities that belong to the model: consecutive stages may have other data, and features in another dtype."""
    features = inputs["features"]
    same = features and {**features, "dtype": None, "long_audio": None}
    return {**inputs, "files": {}, "previous": None, "features": same}


def _load_model_folder(model: nn.Module, hparams: Mapping[str, Any], folder: Path) -> list[str]:
    config = read_config(folder)
    saved, current = (
        {name: value for name, value in with_defaults("adapters", block).items() if name != "lora"}
        for block in (config["adapter"], hparams["adapter"])
    )
    different = difference(saved, current)
    different += lora_difference(config["adapter"].get("lora"), hparams["adapter"].get("lora"), "adapter.lora")
    if different:
        raise ConfigError(
            f"{folder} has another adapter: {'; '.join(different)}. Copy its adapter block into the YAML file"
        )
    different = lora_difference(config["llm"].get("lora"), hparams["llm"].get("lora"), "llm.lora")
    expected = config.get("backbones", {})
    different += [
        f"the weights of {name} are others: digest {expected[name][:16]}, now {digest[:16]}"
        for name, digest in other_weights(hparams, expected).items()
        if name not in KNOWN  # these have several forms of the same weights, about which `check_backbones` warns
    ]
    if different:
        raise ConfigError(f"stage {hparams['stage']} cannot start from {folder}: {'; '.join(different)}")
    check_backbones(hparams, expected, folder)
    return load_trained(model, folder)


def _load_hook(model: nn.Module, path: str) -> None:
    """Load a safetensors file into the tensors of the same names, as a hook of the Pretrainer."""
    tensors = load_file(path)
    copy_tensors(model, tensors, source=path)
    adapter = [name for name in handed_over_names(model, tensors) if name.startswith("adapter.")]
    if missing := [name for name in adapter if name not in tensors]:
        raise ConfigError(
            f"{path} lacks {len(missing)} tensors of this adapter, such as {missing[0]}: run that stage again"
        )


def handed_over_names(model: nn.Module, inherited: Iterable[str]) -> list[str]:
    """Names of the tensors that a stage hands over: those of adapter and LoRA, and all that any stage has trained.

    Parameters
    ----------
    model : nn.Module
        The parameters that this stage trains are trainable.
    inherited : iterable of str
        Names of the tensors that earlier stages have trained.

    Examples
    --------
    >>> model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("encoder", "adapter", "llm")})
    >>> _ = model.requires_grad_(False)
    >>> handed_over_names(model, inherited=["llm.weight"])
    ['adapter.weight', 'llm.weight']
    """
    wanted = {*inherited, *trainable_names(model)}
    return [name for name in model.state_dict() if name in wanted or name.startswith("adapter.") or ".lora_" in name]


def save_stage(
    model: nn.Module,
    hparams: Mapping[str, Any],
    run_opts: Mapping[str, Any],
    inherited: Iterable[str],
    summary: Mapping[str, Any],
) -> None:
    """Write `trained.safetensors` and then `finished.json` into the output folder of a stage.

    Parameters
    ----------
    model : nn.Module
    hparams, run_opts : mapping
        Of this stage.
    inherited : iterable of str
        See `handed_over_names`.
    summary : mapping
        JSON, written into `finished.json`.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> hparams = {"output_folder": folder, "stage": 1, "previous_stage": None, "epochs": 2}
    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 2)})
    >>> save_stage(model, hparams, {}, inherited=[], summary={"loss": 1.5})
    >>> sorted(file.name for file in folder.iterdir())
    ['finished.json', 'trained.safetensors']
    """
    folder = Path(hparams["output_folder"])
    state = model.state_dict()
    with atomic_path(folder / TENSORS) as unfinished:
        save_tensors(unfinished, {name: state[name] for name in handed_over_names(model, inherited)})
    previous = previous_folder(hparams)
    finished = {
        "stage": hparams["stage"],
        **summary,
        "sha256": sha256_of(folder / TENSORS),
        "previous_sha256": (read_finished(previous) or {}).get("sha256") if previous else None,
        "debug": bool(run_opts.get("debug")),
        "settings": run_settings(hparams),
    }
    write_json(folder / FINISHED, finished)


def is_finished(hparams: Mapping[str, Any], run_opts: Mapping[str, Any]) -> bool:
    """Whether this stage was trained before with the same settings, so that there is nothing to train.

    Raises
    ------
    ConfigError
        The output folder contains a stage with other settings, or the previous stage was trained again since.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> hparams = {"output_folder": folder, "stage": 1, "previous_stage": None, "epochs": 2}
    >>> before = is_finished(hparams, {})
    >>> save_stage(nn.ModuleDict({"adapter": nn.Linear(2, 2)}), hparams, {}, inherited=[], summary={})
    >>> before, is_finished(hparams, {})
    (False, True)
    """
    folder = Path(hparams["output_folder"])
    finished = read_finished(folder)
    if finished is None:
        return False
    saved = {**finished["settings"], "debug": finished["debug"]}
    current = {**run_settings(hparams), "debug": bool(run_opts.get("debug"))}
    different = refused_changes(saved, current, bool(hparams.get("accept_changed_data")))
    previous = previous_folder(hparams)
    earlier = read_finished(previous) if previous else None
    again = f"{previous} was trained again since"
    if earlier and earlier["sha256"] != finished["previous_sha256"] and again not in (different or ""):
        different = f"{different}; {again}" if different else again
    if different:
        raise ConfigError(
            f"{folder} contains a stage with other settings: {different}. "
            "Delete the folder to train again, or choose another --output_folder"
        )
    logger.info(
        "Stage %s is finished (%s): nothing to train. Delete the folder to train again.", hparams["stage"], folder
    )
    return True


def _command(hparams: Mapping[str, Any]) -> str:
    """What to run for the previous stage."""
    if hparams["previous_stage"] is not None:
        return f"the stage whose output_folder is {hparams['previous_stage']}"
    return f"python train.py hparams/stage_{hparams['stage'] - 1}.yaml --output_root {hparams['output_root']}"
