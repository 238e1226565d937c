"""Train stages: python train.py hparams/stage_1.yaml, or with --stages 1-3 several stages in order."""

from audiolm_lite.config.errors import run_command
from audiolm_lite.training.run import main

if __name__ == "__main__":
    run_command(main)
