"""From a command line to checked hyperparameters: HyperPyYAML file + `--key value` overrides + run options.

A key that nothing documents and nothing refers to is an error, so a typo cannot pass silently.
"""

import difflib
import io
import logging
import os
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references

from audiolm_lite.data.mixing import split_entries
from audiolm_lite.parts import ConfigError, map_sources
from audiolm_lite.training import distributed
from audiolm_lite.training.optimisation import OPTIMIZERS, SCHEDULES

REQUIRED = object()


class Key(NamedTuple):
    """One documented YAML key.

    Attributes
    ----------
    help : str
        One sentence for `--help`.
    kind : type or tuple of str
        Type of the value, or the values allowed.
    default : object
        Value where the file has none; REQUIRED: the file or the command line must give it.
    result : bool
        Whether another value may give another model; such a change refuses to resume or reuse a run.
    """

    help: str
    kind: Any
    default: Any = REQUIRED
    result: bool = True


MODEL_KEYS = {
    "seed": Key("Seed of initialisation, sampling and dropout.", int, 1986),
    "encoder": Key("Audio encoder block (hparams/encoders/*.yaml): type, source, padding, layers, pool ...", dict),
    "adapter": Key("Adapter block (hparams/adapters/*.yaml): type and the arguments of that adapter.", dict),
    "llm": Key("Language model block (hparams/llms/*.yaml): source, dtype, quantization, lora.", dict),
    "template": Key("Prompt with slots {bos} {audio} {instruction} {answer} {eos} and any manifest field.", str),
    "generation": Key("Generation settings written into the exported model: max_new_tokens ...", dict, None, False),
    "instructions": Key("Questions of AudioLM.transcribe and .caption: {transcribe, caption}.", dict, None, False),
    "train_encoder": Key(
        "Run (and possibly train) the encoder on live waveforms instead of stored features.", bool, False
    ),
}

DATA_KEYS = {
    "data_folder": Key("Folder with the prepared data.", str, result=False),
    "output_root": Key("Folder of the whole curriculum; stages are sub-folders of it.", str, result=False),
    "output_folder": Key("Folder of this run: checkpoints, logs, the exported model.", str, result=False),
    "manifests": Key(
        "Lists of manifest files (JSON lines) under train, valid and test; in train also {path: ..., weight: ...}, the "
        "weight being the manifest's share of an epoch relative to the others.",
        dict,
        result=False,
    ),
    "question_files": Key(
        "Lists of files under train, valid and test, one question a line, for rows without an instruction. As many "
        "files as manifests: one each; else drawn from all; []: a default question; null: every row has its own.",
        dict,
        None,
        result=False,
    ),
    "feature_folder": Key(
        "Feature store written by prepare.py; not needed with train_encoder.", str, None, result=False
    ),
    "tasks": Key("Tasks to keep (manifest field task); null keeps all.", list, None),
    "max_tokens": Key("Most audio + text tokens of a row; more is an error, unless shorten is set.", int, None),
    "shorten": Key("What gives way in longer rows: a field of the template, e.g. transcript; audio; drop.", str, None),
    "batch_tokens": Key("Padded audio + text tokens in a batch, per device.", int, 4096),
    "num_workers": Key("Processes that load data; 0 loads in the main process.", int, 0, result=False),
}

TRAINING_KEYS = {
    **MODEL_KEYS,
    **DATA_KEYS,
    "stage": Key("Number of this stage; stage N starts from stage N-1 of output_root.", int),
    "brain": Key("The training loop: !name:audiolm_lite.training.brain.AudioLMBrain or a subclass.", object),
    "previous_stage": Key(
        "Stage to start from, or a model's folder, e.g. a converted checkpoint; null: <output_root>/stage_<stage - 1>.",
        str,
        None,
    ),
    "alignment_init": Key("Closed-form start of adapter.projection: {ridge, clips}; null: random.", dict, None),
    "trainable": Key("Glob patterns of the parameters that train; each must match something.", list),
    "learning_rates": Key(
        "Glob pattern -> peak learning rate or {lr, weight_decay, schedule, warmup_steps}; the first match counts.",
        dict,
    ),
    "optimizer": Key("AdamW in 32 bits or, by bitsandbytes on a GPU, in 8 bits, paged, or both.", OPTIMIZERS, "adamw"),
    "weight_decay": Key("AdamW weight decay of matrices; vectors (norms, biases) have none.", float, 0.0),
    "betas": Key("AdamW momentum terms.", list, [0.9, 0.999]),
    "schedule": Key("Learning rate after warm-up, per optimiser step.", SCHEDULES, "linear"),
    "warmup_steps": Key("Optimiser steps of linear warm-up.", int, 100),
    "mixing_temperature": Key(
        "Mixes the manifests of train in shares of rows ** (1 / temperature): 1 keeps their sizes' shares, more evens "
        "them out; null: no mixing, every row once an epoch.",
        float,
        None,
    ),
    "epochs": Key("Passes over the training set.", int, 1),
    "grad_accumulation_factor": Key("Batches in one optimiser step; the mean is over all their answer tokens.", int, 1),
    "max_grad_norm": Key("Norm over all groups to which gradients are clipped.", float, 1.0),
    "augmentation": Key(
        "Changes to clips of training: stored features {time_masks, time_share, layer_mask}, live audio {speeds, "
        "time_masks, frequency_masks}; {} takes the defaults, null changes nothing.",
        dict,
        None,
    ),
    "distillation": Key(
        "Learn the LLM's own answers to the text in a clip's place: {text: manifest field, weight: 1, temperature: 2}.",
        dict,
        None,
    ),
    "precision": Key("Autocast precision of training.", ("fp32", "bf16", "fp16"), "fp32"),
    "loss_chunk": Key("Positions whose logits exist at a time; 0: as many as fit in 256 MB.", int, 0, False),
    "gradient_checkpointing": Key(
        "Recompute the activations of every n-th block in the backward pass; 1: of all, 0: of none.", int, 0, False
    ),
    "packing": Key(
        "Batches without padding: all items in one row; for flash_attention_2, since other kernels compare all tokens.",
        bool,
        False,
    ),
    "attention": Key(
        "The LLM's attention in training; null: transformers' choice.",
        ("sdpa", "flash_attention_2", "flex_attention", "eager"),
        None,
        False,
    ),
    "compile": Key("Compile the blocks of LLM and encoder with torch.compile.", bool, False, False),
    "parallel": Key(
        "With several processes: the whole model in each (ddp) or shares of it (fsdp).", ("ddp", "fsdp"), "ddp", False
    ),
    "cpu_offload": Key("With fsdp: keep what is not in use in the host's memory.", bool, False, False),
    "nonfinite_patience": Key(
        "Steps with a non-finite loss or gradient skipped in an epoch before stopping.", int, 3, False
    ),
    "valid_metric": Key(
        "Metric that picks the best checkpoint: loss, accuracy, or any of validation as min:<name> or max:<name>.",
        str,
        "loss",
    ),
    "ckpt_interval_minutes": Key("Minutes between checkpoints within an epoch.", float, 15.0, result=False),
}

EVALUATION_KEYS = {
    "seed": Key("Seed of the controls' permutation of clips.", int, 1986),
    "data_folder": DATA_KEYS["data_folder"],
    "model_folder": Key("Finished stage or saved model to evaluate.", str, result=False),
    "output_folder": Key("Where predictions.jsonl, metrics.json, latency.json and report.html go.", str, result=False),
    "manifests": Key("Manifest files (JSON lines) to evaluate on.", list, result=False),
    "question_files": Key(
        "Files with one question a line, for rows without an instruction (see training); null: every row has one.",
        list,
        None,
        result=False,
    ),
    "feature_folder": Key("Feature store; null: the model's encoder hears the audio.", str, None, result=False),
    "tasks": DATA_KEYS["tasks"],
    "metrics": Key("Task -> how it is scored: {type: asr|classification|regression|captioning, ...}.", dict),
    "controls": Key(
        "What the model hears: normal, zeros (nothing), shuffled (another clip).", list, ["normal", "zeros"]
    ),
    "batch_tokens": DATA_KEYS["batch_tokens"],
    "num_workers": DATA_KEYS["num_workers"],
    "generation": Key("Replaces entries of the model's generation settings.", dict, None),
    "title": Key("Heading of report.html.", str, "Evaluation"),
    "notes": Key("Paragraphs below it: what model, what data.", list, []),
    "backend": Key("For latency.py: eager, inductor or aoti; best: the fastest that works here.", str, "best"),
    "latency_clips": Key("Clips whose answers are timed, one at a time.", int, 10),
    "latency_tokens": Key("Tokens of each timed answer.", int, 32),
    "latency_runs": Key("Timed answers.", int, 100),
}

RUN_OPTIONS = {
    "device": ("DEVICE", "Where to run, e.g. cpu or cuda:0 (default: a GPU where there is one)."),
    "debug": ("", "Two batches, two epochs: shows that everything runs."),
}


def load_experiment(argv: Sequence[str], keys: Mapping[str, Key] = TRAINING_KEYS) -> tuple[dict, dict]:
    """Parse `FILE.yaml --key value ...`, check every key, seed, and make the output folder.

    Parameters
    ----------
    argv : sequence of str
        Command line without the program's name. `--adapter.time_heads 2` reaches into a block.
    keys : mapping
        The documented keys. Beside them a file may hold keys that another line refers to with `!ref <key>` and keys
        that start with "_".

    Returns
    -------
    hparams : dict
        Every documented key (defaults filled in) and the file's helper keys.
    run_opts : dict
        `device`, `debug`: what was given on the command line.

    Raises
    ------
    ConfigError
        Unknown key, missing key or wrong type; names file, key and remedy.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(keys))
        raise SystemExit(0)
    path, overrides, run_opts = _parse_arguments(argv, keys)
    if keys is TRAINING_KEYS and (device := distributed.start(run_opts.get("device"))):
        run_opts["device"] = device
    stream = _overridden_yaml(path, overrides, keys)
    try:
        resolved = resolve_references(stream).getvalue()
        hparams = load_hyperpyyaml(resolved)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: {error} Give it in the file or on the command line (--key value).") from error
    hparams = _check_values(path, hparams, keys)
    if "seed" in hparams:
        _seed_everything(hparams["seed"])
    if "output_folder" in hparams:
        _start_logging(Path(hparams["output_folder"]), resolved)
    return hparams, run_opts


def help_text(keys: Mapping[str, Key]) -> str:
    """Describe the command line: run options and documented keys with their defaults."""
    lines = ["usage: python SCRIPT.py FILE.yaml [--key value ...]", "", "run options:"]
    lines += [f"  {f'--{name} {value}':<34} {text}" for name, (value, text) in RUN_OPTIONS.items()]
    lines += ["", "keys of the YAML file, each also an option (--key value, --block.key value):"]
    for name, key in keys.items():
        kind = "|".join(key.kind) if isinstance(key.kind, tuple) else key.kind.__name__
        default = "required" if key.default is REQUIRED else f"default {key.default}"
        lines.append(f"  {f'--{name} {kind}':<34} {key.help} [{default}]")
    return "\n".join(lines)


def settings(hparams: Mapping, keys: Mapping[str, Key] = TRAINING_KEYS) -> dict:
    """Return the values that decide which model comes out: what a run may be resumed or reused with."""
    plain = {name: hparams[name] for name, key in keys.items() if key.result and name in hparams}
    if "mixing_temperature" in plain:  # the manifests themselves may move, but another mixture of them is another run
        plain["manifest weights"] = split_entries(hparams["manifests"].get("train", []))[1]
    return {name: _comparable(value) for name, value in plain.items()}


def _comparable(value: Any) -> Any:
    """As it is compared between runs: a class by its name, a local source by its full path, whatever the directory."""
    if callable(value):
        return _qualified_name(value)
    if isinstance(value, Mapping):
        return map_sources(value, _full_path, "")
    return value


def _full_path(source: str, where: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _qualified_name(value: Any) -> str:
    value = getattr(value, "func", value)  # `!name:` with arguments gives a functools.partial
    return f"{value.__module__}.{value.__qualname__}"


def _parse_arguments(argv: Sequence[str], keys: Mapping[str, Key]) -> tuple[Path, dict, dict]:
    """Split the command line into file, nested overrides and run options."""
    path, overrides, run_opts = None, {}, {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if path is not None:
                raise ConfigError(f"unexpected argument {word!r} after {path}: options are written --key value")
            path = Path(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name == "debug" and not equals:
            run_opts["debug"] = True
            continue
        if not equals:
            if not rest:
                raise ConfigError(f"option --{name} has no value: write --{name} VALUE")
            value = rest.pop(0)
        if name in RUN_OPTIONS:
            run_opts[name] = ruamel.yaml.YAML(typ="safe").load(value) if name == "debug" else value
            continue
        *blocks, last = name.split(".")
        place = overrides
        for block in blocks:
            place = place.setdefault(block, {})
        text = not blocks and last in keys and keys[last].kind is str and value != "null"
        place[last] = value if text else ruamel.yaml.YAML(typ="safe").load(value)
    if path is None:
        raise ConfigError(f"no YAML file given\n{help_text(keys)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the YAML file of the recipe, e.g. hparams/stage_1.yaml")
    return path, overrides, run_opts


def _overridden_yaml(path: Path, overrides: dict, keys: Mapping[str, Key]) -> io.StringIO:
    """Read the file, check its top-level keys and those of the overrides, and apply the overrides."""
    yaml = ruamel.yaml.YAML()
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.load(text) or ruamel.yaml.comments.CommentedMap()
    except ruamel.yaml.error.MarkedYAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    referenced = {match.split("[")[0].split(".")[0] for match in re.findall(r"<([^<>\s]+)>", text)}
    for name in tree:
        if name not in keys and name not in referenced and not str(name).startswith("_"):
            raise ConfigError(f"{path}: unknown key {name!r}{_nearest(name, [*keys, *referenced])}")
    for name in overrides:
        if name not in keys and name not in tree:
            raise ConfigError(f"unknown option --{name}{_nearest(name, [*keys, *RUN_OPTIONS, *tree])}")
    _update(tree, overrides)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    stream.seek(0)
    stream.name = str(path)  # `!include` is relative to the file
    return stream


def _update(tree: Mapping, overrides: Mapping) -> None:
    """Merge nested overrides into a YAML tree in place; an `!include` node takes them as its own overrides."""
    for name, value in overrides.items():
        if isinstance(value, Mapping) and name in tree:
            node = tree[name]
            if not isinstance(node, Mapping):
                tag = getattr(node, "tag", None)
                tree[name] = ruamel.yaml.comments.CommentedMap()
                if tag is not None and (tag.value or "").startswith("!include:"):
                    tree[name].yaml_set_ctag(ruamel.yaml.Tag(suffix=tag.value))
            _update(tree[name], value)
        else:
            tree[name] = value


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else "; --help lists the known keys"


def _check_values(path: Path, hparams: dict, keys: Mapping[str, Key]) -> dict:
    """Fill defaults and check types."""
    checked = dict(hparams)
    for name, key in keys.items():
        value = checked.setdefault(name, key.default)
        if value is REQUIRED:
            raise ConfigError(f"{path}: key {name!r} is missing ({key.help}) Add it, or give --{name} VALUE")
        if value is None and key.default is None:
            continue
        if isinstance(key.kind, tuple):
            if value not in key.kind:
                raise ConfigError(f"{path}: {name} is {value!r}; choose one of {', '.join(key.kind)}")
        elif key.kind is float and type(value) is int:
            checked[name] = float(value)
        elif not isinstance(value, key.kind) or (key.kind is int and isinstance(value, bool)):
            raise ConfigError(f"{path}: {name} is {value!r}; it must be of type {key.kind.__name__} ({key.help})")
    return checked


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # all devices


def _start_logging(folder: Path, resolved: str) -> None:
    """Make the output folder, keep the resolved YAML there, and log to the console and log.txt.

    Of several processes the first one does; the others' warnings go to the console.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "of_experiment", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        temporary = folder / f"hyperparams.yaml.{os.getpid()}.tmp"  # several processes may prepare into it
        temporary.write_text(resolved, encoding="utf-8")
        os.replace(temporary, folder / "hyperparams.yaml")
        handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    for handler in handlers:
        handler.of_experiment = True
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
