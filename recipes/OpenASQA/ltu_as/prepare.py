"""Prepare the available corpora of Open-ASQA: python prepare.py hparams/prepare.yaml --clotho_folder ..."""

from audiolm_lite.config.errors import run_command
from data_prep.run import main

if __name__ == "__main__":
    run_command(main)
