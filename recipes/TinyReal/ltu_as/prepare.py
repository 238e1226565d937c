"""Prepare TinyReal: python prepare.py hparams/prepare.yaml --esc50_folder /corpora/ESC-50 --an4_folder /corpora/an4"""

from audiolm_lite.config.errors import run_command
from data_prep.run import main

if __name__ == "__main__":
    run_command(main)
