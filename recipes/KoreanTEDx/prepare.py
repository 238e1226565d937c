"""Prepare Korean talks: python prepare.py hparams/prepare.yaml --data_folder /corpora/korean_tedx"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.korean_tedx import read_korean_tedx
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder of the speakers.", str, result=False),
    "test_share": Key("Share of the speakers held out for test.", float),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_korean_tedx(hparams["data_folder"], hparams["valid_share"], hparams["test_share"], hparams["seed"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
