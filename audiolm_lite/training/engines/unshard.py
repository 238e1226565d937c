"""Consolidate a checkpoint that was saved under DeepSpeed, so that DDP, FSDP or one process can continue from it:

    audiolm-lite unshard results/stage_1/checkpoints/step_00001000 unsharded/stage_1/checkpoints
    python train.py hparams/stage_1.yaml --output_folder unsharded/stage_1 --parallel fsdp

The new checkpoint contains the float32 weights and the moments of each trained parameter by name. DeepSpeed must be
installed; no GPU and no second process is needed. DeepSpeed's files are pickles. They are read with torch's restricted
reader, which runs no code from them. Even so, use this on checkpoints of your own only.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.training.checkpoint import CheckpointFolder, read_checkpoint
from audiolm_lite.training.engines.zero import SHARDS, read_shard

# Entries of DeepSpeed's files with a process's flat float32 weights and the state of torch's optimiser, per ZeRO stage.
_WEIGHTS = {2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
_OPTIMIZER = {2: "base_optimizer_state", 3: "optimizer_state_dict"}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def unshard(source: Path, out: Path) -> Path:
    """Consolidate the checkpoint `source` and write it to the folder of checkpoints `out`.

    Returns
    -------
    Path
        Folder of the new checkpoint.

    Raises
    ------
    ConfigError
        The checkpoint was not saved under DeepSpeed, or shards are missing or were not written by DeepSpeed.
    DamagedCheckpointError
        A file is missing or has changed since it was written.
    """
    checkpoint = read_checkpoint(source)
    layout = checkpoint.state.get("deepspeed")
    if layout is None:
        raise ConfigError(f"{source} was not saved under DeepSpeed: every engine can continue from it as it is")
    stage = layout["stage"]
    models = [read_shard(file) for file in sorted((source / SHARDS).glob("*_model_states.pt"), key=_rank)]
    shards = [read_shard(file) for file in sorted((source / SHARDS).glob("*_optim_states.pt"), key=_rank)]
    shards = [shard["optimizer_state_dict"] for shard in shards]
    if len(shards) != layout["ranks"]:
        raise ConfigError(
            f"{source / SHARDS} contains shards of {len(shards)} processes, and {layout['ranks']} processes wrote it: "
            "copy the missing files"
        )

    def consolidate(flat_tensors: Callable[[dict], list[Tensor]]) -> dict[str, Tensor]:
        return _consolidate(stage, models, [flat_tensors(shard) for shard in shards], shards[0])

    def moment_of_shard(moment: str, shard: dict) -> list[Tensor]:
        return _moment(shard[_OPTIMIZER[stage]], moment)

    weights = consolidate(lambda shard: list(shard[_WEIGHTS[stage]]))
    groups = shards[0][_OPTIMIZER[stage]]["param_groups"]
    names = [name for group in groups for name in group["names"]]
    moments: dict[int, dict[str, Tensor]] = {}
    if entries := shards[0][_OPTIMIZER[stage]]["state"]:  # empty where all steps so far were skipped
        by_moment = {moment: consolidate(partial(moment_of_shard, moment)) for moment in _MOMENTS}
        for number, name in enumerate(names):
            step = torch.tensor(float(entries[0]["step"]))  # a tensor per parameter: AdamW counts in place
            moments[number] = {"step": step, **{moment: tensors[name] for moment, tensors in by_moment.items()}}
    numbers = iter(range(len(names)))
    groups = [{**group, "params": [next(numbers) for _ in group["names"]]} for group in groups]
    state = {**checkpoint.state, "optimizer": {"state": moments, "param_groups": groups}, "deepspeed": None}
    tensors = {**checkpoint.tensors, **{name: weights[name] for name in names}}
    info = {name: value for name, value in checkpoint.info.items() if name != "sha256"}
    folder = CheckpointFolder(out, info["settings"]["valid_metric"])
    return folder.save(tensors, state, info)


def _consolidate(
    stage: int, models: list[dict[str, Any]], flat: list[list[Tensor]], shard: dict[str, Any]
) -> dict[str, Tensor]:
    """Parameters by name from the flat tensors of each process, by the functions of DeepSpeed's own script."""
    from deepspeed.utils import zero_to_fp32

    states = [
        zero_to_fp32.zero_model_state({}, model["param_shapes"], [], model["ds_version"], None, None)
        for model in models
    ]
    if stage == 3:
        tensors = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(len(flat), flat, states, True)
    else:
        paddings = shard.get("param_alignment_paddings")
        tensors = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint(len(flat), flat, states, True, paddings)
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _moment(optimizer: dict[str, Any], name: str) -> list[Tensor]:
    return [entries[name] for _, entries in sorted(optimizer["state"].items())]


def _rank(file: Path) -> int:
    """Number of the process in zero_pp_rank_<number>_mp_rank_00_...; 0 for a file of all processes."""
    return int(file.name.split("rank_")[1].split("_")[0])


def main(argv: Sequence[str]) -> None:
    """Consolidate the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(
        prog="audiolm-lite unshard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="checkpoint, <output_folder>/checkpoints/step_...")
    parser.add_argument("out", type=Path, help="folder for the new checkpoint, <another output_folder>/checkpoints")
    options = parser.parse_args(argv)
    print(f"written to {unshard(options.source, options.out)}")
