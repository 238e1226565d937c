"""Prepare CMU-MOSEI: python prepare.py hparams/prepare.yaml --data_folder /corpora/CMU-MOSEI"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.cmu_mosei import read_cmu_mosei
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with Raw/, CMU_MOSEI_Labels.csd and cmu_mosei_std_folds.py.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_cmu_mosei(hparams["data_folder"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
