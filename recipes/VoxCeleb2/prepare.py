"""Prepare VoxCeleb2 with ages and genders: python prepare.py hparams/prepare.yaml --data_folder /corpora/voxceleb2"""

from audiolm_lite.config.errors import run_command
from data_prep.run import main

if __name__ == "__main__":
    run_command(main)
