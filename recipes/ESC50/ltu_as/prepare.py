"""Prepare ESC-50: python prepare.py hparams/prepare.yaml --data_folder /corpora/ESC-50 --output_folder data"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.esc50 import read_esc50
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("The unpacked corpus, with audio/ and meta/.", str, result=False),
    "esc10": Key("Keep the ten classes of ESC-10 only.", bool, False),
    "test_fold": Key("Fold to test on; the others are for training and validation.", int),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    options = {name: hparams[name] for name in ("esc10", "test_fold", "valid_share", "seed")}
    return prepare(read_esc50(hparams["data_folder"], **options), hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
