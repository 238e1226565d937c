"""Train stages: python train.py hparams/stage_1.yaml, or with --stages 1-3 this one and its neighbours."""

import sys

from audiolm_lite.training.build import align_projection, build_datasets, build_model
from audiolm_lite.training.experiment import load_experiment
from audiolm_lite.training.handover import is_finished
from audiolm_lite.training.stages import stage_commands


def main(argv: list[str]) -> None:
    """Train the stages that a command line names, one after the other."""
    for command in stage_commands(argv):
        train_stage(command)


def train_stage(argv: list[str]) -> None:
    """Train, unless this very stage is trained already, and export the best model."""
    hparams, run_opts = load_experiment(argv)
    if is_finished(hparams, run_opts):
        return
    model, tokenizer = build_model(hparams)
    datasets = build_datasets(hparams, model, tokenizer)
    brain = hparams["brain"](model, hparams, run_opts)
    brain.print_parts()
    brain.load_previous_stage()
    align_projection(hparams, model, datasets["train"], tokenizer)
    brain.fit_stage(datasets["train"], datasets["valid"])
    brain.export(hparams["output_folder"])


if __name__ == "__main__":
    main(sys.argv[1:])
