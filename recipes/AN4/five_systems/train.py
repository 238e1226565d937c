"""Train stages: python train.py hparams/stage_1.yaml, or with --stages 1-3 several stages in order."""

import sys

from audiolm_lite.training.run import main

if __name__ == "__main__":
    main(sys.argv[1:])
