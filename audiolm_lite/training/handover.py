"""From run to run: the checkpoint that a run goes on from, what a finished stage leaves for the next one to start from.

A finished stage's folder holds `trained.safetensors` (the adapter, the LoRA and whatever else any stage so far has
trained, from the best checkpoint) and `finished.json` (how it was made), which is written last.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.settings import settings
from audiolm_lite.config.keys import REQUIRED, TRAINING_KEYS
from audiolm_lite.config.registry import with_defaults
from audiolm_lite.distributed import processes
from audiolm_lite.hub.folder import CONFIG, read_config
from audiolm_lite.hub.load import load_trained
from audiolm_lite.training.checkpoint import Checkpoint, CheckpointFolder, copy_tensors, file_hash, save_tensors
from audiolm_lite.training.trainable import trainable_names

logger = logging.getLogger(__name__)

TENSORS, FINISHED = "trained.safetensors", "finished.json"
# Blocks in which another value makes another model, even where every tensor keeps its shape.
SHARED_BLOCKS = ("encoder", "adapter")


def previous_folder(hparams: Mapping) -> Path | None:
    """Output folder of the stage before: `previous_stage` where given, else by number; None for stage 1."""
    if hparams["previous_stage"] is not None:
        return Path(hparams["previous_stage"])
    return Path(hparams["output_root"]) / f"stage_{hparams['stage'] - 1}" if hparams["stage"] > 1 else None


def load_previous_stage(model: nn.Module, hparams: Mapping) -> list[str]:
    """Load what the stage before has trained, through SpeechBrain's Pretrainer.

    Where `previous_stage` is no stage of this library but a model's folder, such as a converted checkpoint, training
    starts from that.

    Returns
    -------
    list of str
        Names of the tensors loaded; empty for a first stage.

    Raises
    ------
    ConfigError
        The stage before has not finished, or is of another encoder, adapter or LLM; says what to run.
    """
    folder = previous_folder(hparams)
    if folder is None:
        return []
    finished = _read_finished(folder)
    if finished is None and (folder / CONFIG).is_file():
        return _load_model_folder(model, hparams, folder)
    if finished is None or not (folder / TENSORS).is_file():
        raise ConfigError(
            f"stage {hparams['stage']} starts from {folder}, where no finished stage is. Run it first: "
            + _command(hparams)
        )
    before, now = finished["settings"], _plain(settings(hparams))
    different = [
        f"{name}: {before[name]} there, {now[name]} here" for name in SHARED_BLOCKS if before[name] != now[name]
    ]
    if before["llm"]["source"] != now["llm"]["source"]:
        different.append(f"llm source: {before['llm']['source']} there, {now['llm']['source']} here")
    if different:
        raise ConfigError(
            f"stage {hparams['stage']} cannot start from {folder}: {'; '.join(different)}. "
            f"Make the files agree, or run again: {_command(hparams)}"
        )
    pretrainer = Pretrainer(
        loadables={"model": model}, paths={"model": str(folder / TENSORS)}, custom_hooks={"model": _load_hook}
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    with safe_open(folder / TENSORS, framework="pt") as file:
        return list(file.keys())


def _load_model_folder(model: nn.Module, hparams: Mapping, folder: Path) -> list[str]:
    config = read_config(folder)
    there, here = (
        {name: value for name, value in with_defaults("adapters", block).items() if name != "lora"}
        for block in (config["adapter"], hparams["adapter"])
    )
    if different := difference(there, here):
        raise ConfigError(
            f"{folder} has another adapter: {'; '.join(different)}. Write its adapter block into the YAML file"
        )
    return load_trained(model, folder)


def _load_hook(model: nn.Module, path: str) -> None:
    """Pretrainer hook: safetensors into the tensors of the same names; nothing is unpickled."""
    tensors = load_file(path)
    copy_tensors(model, tensors, source=path)
    missing = [
        name for name in handed_over_names(model, tensors) if name.startswith("adapter.") and name not in tensors
    ]
    if missing:
        raise ConfigError(f"{path} lacks {missing[0]} and {len(missing) - 1} more of this adapter's tensors")


def handed_over_names(model: nn.Module, carried: Iterable[str]) -> list[str]:
    """Tensors that no pretrained file gives: adapter, LoRA, what trains now, and what earlier stages `carried` here."""
    wanted = {*carried, *trainable_names(model)}
    return [name for name in model.state_dict() if name in wanted or name.startswith("adapter.") or ".lora_" in name]


def save_stage(model: nn.Module, hparams: Mapping, run_opts: Mapping, carried: Iterable[str], summary: Mapping) -> None:
    """Write a stage's `trained.safetensors`, then `finished.json` with `summary`, into its output folder."""
    folder = Path(hparams["output_folder"])
    own = model.state_dict()
    temporary = folder / f".{TENSORS}.tmp"
    save_tensors(temporary, {name: own[name] for name in handed_over_names(model, carried)})
    os.replace(temporary, folder / TENSORS)
    previous = previous_folder(hparams)
    finished = {
        "stage": hparams["stage"],
        **summary,
        "sha256": file_hash(folder / TENSORS),
        "previous_sha256": (_read_finished(previous) or {}).get("sha256") if previous else None,
        "debug": bool(run_opts.get("debug")),
        "settings": settings(hparams),
    }
    temporary = folder / f".{FINISHED}.tmp"
    temporary.write_text(json.dumps(finished, indent=1), encoding="utf-8")
    os.replace(temporary, folder / FINISHED)


def is_finished(hparams: Mapping, run_opts: Mapping) -> bool:
    """Whether this very stage was trained before, so that its results can be used again.

    Raises
    ------
    ConfigError
        The output folder holds a stage trained with other settings, or from a stage before that was trained anew.
    """
    folder = Path(hparams["output_folder"])
    finished = _read_finished(folder)
    if finished is None:
        return False
    different = difference({**finished["settings"], "debug": finished["debug"]}, _current(hparams, run_opts))
    previous = previous_folder(hparams)
    earlier = _read_finished(previous) if previous else None
    if earlier and earlier["sha256"] != finished["previous_sha256"]:
        different.append(f"{previous} was trained anew since")
    if different:
        raise ConfigError(
            f"{folder} holds a stage trained otherwise: {'; '.join(different)}. "
            "Delete that folder to train again, or choose another --output_folder"
        )
    logger.info(
        "Stage %s is finished (%s): nothing to train. Delete the folder to train again.", hparams["stage"], folder
    )
    return True


def open_checkpoints(folder: Path, metric: str, settings: Mapping) -> tuple[CheckpointFolder, Checkpoint | None]:
    """Open a run's checkpoints and find the one to go on from; the main process clears up before others look.

    Parameters
    ----------
    folder : Path
        Output folder of the run.
    metric : str
        See `CheckpointFolder`.
    settings : mapping
        Those of this run, and the number of `items` in its training set.

    Raises
    ------
    ConfigError
        It is of a run with other settings, or not every process sees it.
    """
    for turn in (True, False):
        if processes.is_main() == turn:
            checkpoints = CheckpointFolder(folder / "checkpoints", metric)
            checkpoint = checkpoints.newest()
        processes.any_rank()
    if len(set(processes.gather(checkpoint and checkpoint.info["step"]))) > 1:
        raise ConfigError(f"{folder} is not the same in all processes: put output_folder on a shared disk")
    if checkpoint is not None:
        saved = {**checkpoint.info["settings"], "items": checkpoint.info["items"]}
        if different := difference(saved, settings):
            raise ConfigError(
                f"{checkpoints.folder} holds an unfinished run with other settings: {'; '.join(different)}. "
                f"Use the same settings, delete {folder} to start anew, or choose another --output_folder"
            )
    return checkpoints, checkpoint


def difference(before: Mapping, now: Mapping) -> list[str]:
    """The entries in which two settings differ, in words; a key that came later than `before` had its default."""
    defaults = {name: key.default for name, key in TRAINING_KEYS.items() if name in now}
    before, now = _plain({**{n: v for n, v in defaults.items() if v is not REQUIRED}, **before}), _plain(now)
    names = [*now, *(name for name in before if name not in now)]
    return [f"{n} was {before.get(n)}, is now {now.get(n)}" for n in names if before.get(n) != now.get(n)]


def _current(hparams: Mapping, run_opts: Mapping) -> dict:
    return {**settings(hparams), "debug": bool(run_opts.get("debug"))}


def _plain(value: Mapping) -> dict:
    """As JSON gives it back, so that tuples and lists compare equal."""
    return json.loads(json.dumps(value))


def _read_finished(folder: Path) -> dict | None:
    path = folder / FINISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _command(hparams: Mapping) -> str:
    if hparams["previous_stage"] is not None:
        return f"the stage whose output_folder is {hparams['previous_stage']}"
    return f"python train.py hparams/stage_{hparams['stage'] - 1}.yaml --output_root {hparams['output_root']}"
