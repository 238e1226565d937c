"""Create MiniASQA and its features: python prepare.py hparams/prepare.yaml"""

from audiolm_lite.config.errors import run_command
from data_prep.miniasqa.prepare import main

if __name__ == "__main__":
    run_command(main)
