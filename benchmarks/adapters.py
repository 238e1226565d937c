"""What does an adapter hear per minute of computing? Adapters after a CTC start of the same CPU time.

    python benchmarks/adapters.py recipes/TinyReal/ltu_as/hparams/stage_1.yaml --data_folder DATA \\
        --adapters hparams/adapters/stacked_transformer.yaml{,:blocks=0} hparams/adapters/tltr.yaml --minutes 8

Each adapter first makes one pass, which is timed, and then starts again with as many passes as fit in the CPU time of
`--minutes`; the learning rate falls to zero at their end. An adapter may be followed by entries of its block, separated
by colons: stacked_transformer.yaml:blocks=0 is linear but for its norms. Reports parameters, passes, CPU seconds, the
CTC loss per piece, and the WER of the adapter's greedy transcripts of the validation set, with its 95 % interval.
Further options are those of the stage, for example `--manifests.train`. The last line of the output is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from audiolm_lite.training import run
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.ctc_start import RESULT


class _Started(Exception):  # noqa: N818  # no error: the start is finished, and the stage itself is not trained
    """Ends a stage after the start of its adapter."""


def start(stage: Path, block: dict[str, Any], passes: int, options: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    """Make a CTC start with so many passes."""
    settings = {"ctc_start": {**options, "passes": passes}, "adapter": block, "alignment_init": None}
    arguments = [f"--{name}:={json.dumps(value)}" for name, value in settings.items()]
    measured: dict[str, Any] = {"passes": passes}
    initialize = run.initialize_adapter

    def timed(brain: AudioLMBrain, *rest: Any) -> None:
        began = time.process_time()
        initialize(brain, *rest)
        measured["cpu_seconds"] = round(time.process_time() - began, 1)
        measured["parameters"] = sum(p.numel() for p in brain.model.adapter.parameters())
        raise _Started

    with tempfile.TemporaryDirectory() as root:
        run.initialize_adapter = timed
        try:
            run.train_stage([str(stage), "--output_root", root, *flags, *arguments])
        except _Started:
            pass
        finally:
            run.initialize_adapter = initialize
        (result,) = Path(root).rglob(RESULT)
        scores = json.loads(result.read_text(encoding="utf-8"))
    alone = scores.pop("adapter_alone")
    if alone is not None:
        alone = {name: alone[name] for name in ("utterances", "wer", "cer", "interval") if name in alone}
    return {**measured, **scores, "adapter_alone": alone}


def read_block(argument: str) -> dict[str, Any]:
    """Block of an adapter: a YAML file, and entries that replace its own."""
    file, *entries = argument.split(":")
    block = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    return block | {name: yaml.safe_load(value) for name, _, value in (entry.partition("=") for entry in entries)}


def main(argv: list[str]) -> dict[str, Any]:
    """Start all adapters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="YAML file of a stage")
    parser.add_argument("--data_folder", type=Path, required=True, help="prepared data")
    parser.add_argument("--adapters", nargs="+", required=True, help="YAML files of adapters, with entries or without")
    parser.add_argument("--minutes", type=float, default=8.0, help="CPU time of each start; default: %(default)s")
    parser.add_argument("--ctc", type=yaml.safe_load, default={}, help="options of ctc_start except passes")
    options, flags = parser.parse_known_args(argv)
    stage = options.stage.resolve()
    flags = ["--data_folder", str(options.data_folder.resolve()), *flags]
    blocks = {argument: read_block(argument) for argument in options.adapters}
    os.chdir(stage.parent.parent)  # paths in a stage's file are relative to the folder of its train.py
    runs = []
    for argument, block in blocks.items():
        timed = start(stage, block, 1, options.ctc, flags)
        passes = max(1, round(60 * options.minutes / timed["cpu_seconds"]))
        runs.append({"adapter": Path(argument).name, **start(stage, block, passes, options.ctc, flags)})
        print(runs[-1], flush=True)
    return {"stage": stage.name, "minutes": options.minutes, "threads": torch.get_num_threads(), "runs": runs}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
