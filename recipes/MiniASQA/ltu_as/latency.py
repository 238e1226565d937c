"""Time the model clip by clip, compiled and eager: python latency.py hparams/evaluate.yaml"""

from audiolm_lite.config.errors import run_command
from audiolm_lite.deploy.run import main

if __name__ == "__main__":
    run_command(main)
