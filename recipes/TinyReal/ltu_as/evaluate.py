"""Answer and score the test set, with and without audio: python evaluate.py hparams/evaluate.yaml"""

from audiolm_lite.config.errors import run_command
from audiolm_lite.evaluation.run import main

if __name__ == "__main__":
    run_command(main)
