"""What is an adapter's start worth? Loss of a stage after a random, a closed-form and a CTC start of the adapter.

    python benchmarks/ctc_start.py recipes/MiniASQA/ltu_as/hparams/stage_1.yaml --data_folder DATA

Trains one stage per start and seed, with the same data, batches and learning rates: adapter and LoRA on the rows with
task "asr". Reports for each start the optimiser steps until the training loss (nats per answer token, mean of ten
steps) has fallen to each of `--losses`, validation loss and accuracy, the WER of the adapter alone, and the seconds of
start and stage. The closed form needs timed words in the manifest. Any stage file will do. Further options are those of
the stage, for example `--encoder.source` and `--llm.source`, and replace those of this script. The last line of the
output is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from audiolm_lite.training import run
from audiolm_lite.training.ctc_start import RESULT

STARTS = {
    "random": {"alignment_init": "null", "ctc_start": "null"},
    "closed form": {"alignment_init": "{ridge: 10.0, clips: 1500}", "ctc_start": "null"},
    "ctc": {"alignment_init": "null"},
}
STAGE = {"tasks": "[asr]", "trainable": "['adapter.*', 'llm.*lora_*']", "learning_rates": "{'*': 1.0e-3}"}
WINDOW = 10


def steps_to(losses: list[float], threshold: float) -> int | None:
    """First step at which the mean of the last WINDOW losses is at most the threshold; None if it never is."""
    means = (mean(losses[end - WINDOW : end]) for end in range(WINDOW, len(losses) + 1))
    return next((step for step, value in enumerate(means, start=WINDOW) if value <= threshold), None)


def train(stage: Path, start: str, ctc: str, seed: int, flags: list[str], thresholds: list[float]) -> dict[str, Any]:
    """Train the stage after one start."""
    settings = {**STAGE, "seed": seed, "ctc_start": ctc, **STARTS[start]}
    given = {flag.split("=")[0].strip("-:") for flag in flags if flag.startswith("--")}
    options = [f"--{name}:={value}" for name, value in settings.items() if name not in given]
    began, marks = time.perf_counter(), []
    initialize = run.initialize_adapter

    def timed(*arguments: Any) -> None:
        marks.append(time.perf_counter())
        initialize(*arguments)
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as root:
        run.initialize_adapter = timed
        try:
            brain = run.train_stage([str(stage), *options, "--output_root", root, *flags])
        finally:
            run.initialize_adapter = initialize
        assert brain is not None
        lines = (brain.folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        alone = None
        if (brain.folder / RESULT).is_file():
            scores = json.loads((brain.folder / RESULT).read_text(encoding="utf-8"))["adapter_alone"]
            alone = scores and round(scores["wer"], 4)
    return {
        "start": start,
        "seed": seed,
        "steps_to": {str(threshold): steps_to(losses, threshold) for threshold in thresholds},
        "steps": len(losses),
        "first_loss": round(mean(losses[:WINDOW]), 4),
        "last_loss": round(mean(losses[-WINDOW:]), 4),
        **{f"valid_{name}": round(value, 4) for name, value in brain.summary["metrics"].items()},
        "adapter_alone_wer": alone,
        "start_seconds": round(marks[1] - marks[0], 1),
        "stage_seconds": round(time.perf_counter() - began - (marks[1] - marks[0]), 1),
    }


def main(argv: list[str]) -> dict[str, Any]:
    """Run all starts with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="YAML file of a stage")
    parser.add_argument("--data_folder", type=Path, required=True, help="prepared data")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--ctc", default="{}", help="options of ctc_start, e.g. '{passes: 4}'")
    parser.add_argument("--losses", nargs="+", type=float, default=[4.0, 3.0, 2.0, 1.0, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1986])
    options, flags = parser.parse_known_args(argv)
    stage = options.stage.resolve()
    flags = ["--data_folder", str(options.data_folder.resolve()), *flags]
    os.chdir(stage.parent.parent)  # paths in a stage's file are relative to the folder of its train.py
    runs = []
    for seed in options.seeds:
        for start in options.starts:
            runs.append(train(stage, start, options.ctc, seed, flags, options.losses))
            print(runs[-1], flush=True)
    return {"stage": options.stage.name, "threads": torch.get_num_threads(), "options": flags[2:], "runs": runs}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
