"""Prepare CMU AN4: python prepare.py hparams/prepare.yaml --data_folder /corpora/an4 --output_folder data"""

from audiolm_lite.config.errors import run_command
from data_prep.run import main

if __name__ == "__main__":
    run_command(main)
