"""Prepare FSD50K: python prepare.py hparams/prepare.yaml --data_folder /corpora/FSD50K"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.fsd50k import read_fsd50k
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with FSD50K.ground_truth, FSD50K.dev_audio and FSD50K.eval_audio.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_fsd50k(hparams["data_folder"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
