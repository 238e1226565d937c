"""Prepare AN4, ESC-50 and SpeechOcean762 together: python prepare.py hparams/prepare.yaml --an4_folder ..."""

from audiolm_lite.config.errors import run_command
from data_prep.run import main

if __name__ == "__main__":
    run_command(main)
