"""Time the model clip by clip, compiled and eager: python latency.py hparams/evaluate.yaml"""

import sys

from audiolm_lite.deploy.run import main

if __name__ == "__main__":
    main(sys.argv[1:])
