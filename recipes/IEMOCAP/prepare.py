"""Prepare IEMOCAP: python prepare.py hparams/prepare.yaml --data_folder /corpora/IEMOCAP_full_release"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.iemocap import read_iemocap
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("IEMOCAP_full_release/, with Session1 ... Session5.", str, result=False),
    "valid_session": Key("Session for validation.", int),
    "test_session": Key("Session for test.", int),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_iemocap(hparams["data_folder"], hparams["valid_session"], hparams["test_session"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
