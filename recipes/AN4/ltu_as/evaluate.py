"""Answer and score the test set, with and without audio: python evaluate.py hparams/evaluate.yaml"""

import sys

from audiolm_lite.evaluation.run import main

if __name__ == "__main__":
    main(sys.argv[1:])
