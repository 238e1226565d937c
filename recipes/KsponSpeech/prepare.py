"""Prepare KsponSpeech: python prepare.py hparams/prepare.yaml --data_folder /corpora/KsponSpeech"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.ksponspeech import read_ksponspeech
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with KsponSpeech_01 ... KsponSpeech_05, _eval and _scripts.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_ksponspeech(hparams["data_folder"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
