"""Runs on two processes with DeepSpeed, which test_zero.py starts with torchrun and whose results it compares.

torchrun --nproc_per_node 2 tests/training/engines/zero_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from audiolm_lite.distributed import processes
from audiolm_lite.training.engines import sharding
from tests.training.engines.two_processes import curriculum_command, failure, run, stopped
from tests.training.test_build import train
from tests.training.toy import ToyData, make_model

FULL = {"trainable": ["adapter.*", "llm.*"], "learning_rates": {"adapter.*": 1e-2, "llm.*": 1e-3}}


def engine(root, stage):
    return {"parallel": "deepspeed", "deepspeed_config": str(root / f"zero{stage}.json")}


def frozen_shard(brain):
    """Number of elements of a frozen matrix in this process, and the unsharded matrix."""
    tensor = frozen(brain.model)
    return getattr(tensor, "ds_tensor", tensor).numel(), sharding.full_tensor(tensor).tolist()


def frozen(model):
    return next(tensor for name, tensor in model.named_parameters() if name.endswith("q_proj.base_layer.weight"))


def main(root):
    torch.set_num_threads(1)
    processes.start_process_group("cpu")
    results = {"frozen before": frozen(make_model()).tolist()}
    run(root / "ddp", grad_accumulation_factor=2)
    run(root / "ddp full", model=make_model(lora=False, tied=True), **FULL)
    for stage in (2, 3):
        options = engine(root, stage)
        brain = run(root / f"zero{stage}", grad_accumulation_factor=2, **options)
        results[f"frozen {stage}"] = frozen_shard(brain)
        stopped(root / f"zero{stage} stopped", grad_accumulation_factor=2, **options)
        run(root / f"zero{stage} full", model=make_model(lora=False, tied=True), **FULL, **options)
        run(root / f"zero{stage} dropout", dropout=0.1, **options)
        stopped(root / f"zero{stage} halves", dropout=0.1, **options)
        run(root / f"zero{stage} halves", dropout=0.1, **options)
    run(root / "zero3 blocks", grad_accumulation_factor=2, gradient_checkpointing=1, **engine(root, 3))
    bad = ToyData(20)
    for index in (3, 4, 5):
        bad.items[index].features[:] = torch.nan
    for stage in (2, 3):
        results[f"nonfinite {stage}"] = failure(root / f"bad {stage}", bad, nonfinite_patience=0, **engine(root, stage))
    command = [*curriculum_command(root), "--parallel", "deepspeed"]
    for stage, trainable in ((2, "['adapter.*']"), (3, "['adapter.*', 'llm.*lora_*']")):
        options = ["--stage", str(stage - 1), "--trainable", trainable]
        train([*command, *options, "--deepspeed_config", str(root / f"zero{stage}.json")])
    if processes.is_main():
        (root / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
