"""Prepare KsponSpeech: python prepare.py hparams/prepare.yaml --data_folder /corpora/KsponSpeech"""

import sys

from audiolm_lite.training.experiment import load_experiment
from audiolm_lite.training.keys import Key
from data_prep.corpora.ksponspeech import read_ksponspeech
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with KsponSpeech_01 ... KsponSpeech_05, _eval and _scripts.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts = load_experiment(argv, KEYS)
    clips = read_ksponspeech(hparams["data_folder"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
