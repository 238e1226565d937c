"""Prepare LibriSpeech: python prepare.py hparams/prepare.yaml --data_folder /corpora/LibriSpeech"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.librispeech import read_librispeech
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("LibriSpeech/, with SPEAKERS.TXT and the subsets.", str, result=False),
    "subsets": Key("Split -> folders of LibriSpeech, under train, valid and test.", dict),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_librispeech(hparams["data_folder"], hparams["subsets"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
