"""Make a checkpoint whole that was saved under DeepSpeed, for DDP, FSDP or one process to go on from:

    python -m audiolm_lite.training.engines.unshard results/stage_1/checkpoints/step_00001000 whole/stage_1/checkpoints
    python train.py hparams/stage_1.yaml --output_folder whole/stage_1 --parallel fsdp

The new checkpoint has the float32 weights and the moments of every trained parameter by name. Needs DeepSpeed, but no
GPU and no other process. Files of DeepSpeed are pickles: they are read with torch's restricted reader, which runs no
code of theirs, and still this is meant for checkpoints of your own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.training.checkpoint import CheckpointFolder, DamagedCheckpointError, read_checkpoint
from audiolm_lite.training.engines.zero import SHARDS, read_shard

# Where DeepSpeed puts a process's flat float32 weights, and the state of torch's optimiser, by ZeRO's stage.
_WEIGHTS = {2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
_OPTIMISER = {2: "base_optimizer_state", 3: "optimizer_state_dict"}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def unshard(source: Path, out: Path) -> Path:
    """Write the checkpoint `source` to the folder of checkpoints `out`, whole; returns the new checkpoint's folder.

    Raises
    ------
    ConfigError
        It was not saved under DeepSpeed, or a file is not DeepSpeed's.
    DamagedCheckpointError
        Its files are not those that were written.
    """
    checkpoint = read_checkpoint(source)
    layout = checkpoint.state.get("deepspeed")
    if layout is None:
        raise ConfigError(f"{source} was not saved under DeepSpeed: every engine goes on from it as it is")
    stage = layout["stage"]
    models = [read_shard(file) for file in sorted((source / SHARDS).glob("*_model_states.pt"), key=_rank)]
    shards = [read_shard(file) for file in sorted((source / SHARDS).glob("*_optim_states.pt"), key=_rank)]
    shards = [shard["optimizer_state_dict"] for shard in shards]
    if len(shards) != layout["ranks"]:
        raise ConfigError(f"{source / SHARDS} holds the shares of {len(shards)} processes, not of {layout['ranks']}")

    def whole(flat: Callable[[dict], list[Tensor]]) -> dict[str, Tensor]:
        return _whole(stage, models, [flat(shard) for shard in shards], shards[0])

    weights = whole(lambda shard: list(shard[_WEIGHTS[stage]]))
    groups = shards[0][_OPTIMISER[stage]]["param_groups"]
    names = [name for group in groups for name in group["names"]]
    moments: dict[int, dict[str, Tensor]] = {}
    if entries := shards[0][_OPTIMISER[stage]]["state"]:  # none where every step so far was skipped
        parts = {m: whole(lambda shard, m=m: _moment(shard[_OPTIMISER[stage]], m)) for m in _MOMENTS}
        for number, name in enumerate(names):
            step = torch.tensor(float(entries[0]["step"]))  # each its own: AdamW counts in place
            moments[number] = {"step": step, **{moment: part[name] for moment, part in parts.items()}}
    numbers = iter(range(len(names)))
    groups = [{**group, "params": [next(numbers) for _ in group["names"]]} for group in groups]
    state = {**checkpoint.state, "optimizer": {"state": moments, "param_groups": groups}, "deepspeed": None}
    tensors = {**checkpoint.tensors, **{name: weights[name] for name in names}}
    info = {name: value for name, value in checkpoint.info.items() if name != "sha256"}
    folder = CheckpointFolder(out, info["settings"]["valid_metric"])
    return folder.save(tensors, state, info)


def _whole(stage: int, models: list[dict], flat: list[list[Tensor]], shard: dict) -> dict[str, Tensor]:
    """Parameters by name out of each process's flat tensors, as DeepSpeed's own script takes them apart."""
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


def _moment(optimiser: dict, name: str) -> list[Tensor]:
    return [entries[name] for _, entries in sorted(optimiser["state"].items())]


def _rank(file: Path) -> int:
    """Number of the process in zero_pp_rank_<number>_mp_rank_00_..., 0 where one file serves all."""
    return int(file.name.split("rank_")[1].split("_")[0])


def main(argv: Sequence[str]) -> None:
    """Run the command; an error is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m audiolm_lite.training.engines.unshard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="checkpoint, <output_folder>/checkpoints/step_...")
    parser.add_argument(
        "out", type=Path, help="folder of checkpoints to write it to, <another output_folder>/checkpoints"
    )
    options = parser.parse_args(argv)
    try:
        print(f"written to {unshard(options.source, options.out)}")
    except (ConfigError, DamagedCheckpointError) as error:
        raise SystemExit(f"error: {options.source}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
