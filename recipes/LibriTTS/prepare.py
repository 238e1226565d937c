"""Prepare LibriTTS: python prepare.py hparams/prepare.yaml --data_folder /corpora/LibriTTS"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.libritts import read_libritts
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("LibriTTS/, with speakers.tsv and the subsets.", str, result=False),
    "subsets": Key("Split -> folders of LibriTTS, under train, valid and test.", dict),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_libritts(hparams["data_folder"], hparams["subsets"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
