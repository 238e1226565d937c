"""Prepare AudioCaps: python prepare.py hparams/prepare.yaml --data_folder /corpora/audiocaps"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.audiocaps import read_audiocaps
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with train.csv, val.csv, test.csv and audio/.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_audiocaps(hparams["data_folder"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
