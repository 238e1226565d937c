"""Prepare VGGSound: python prepare.py hparams/prepare.yaml --data_folder /corpora/vggsound"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.vggsound import read_vggsound
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with vggsound.csv and audio/.", str, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_vggsound(hparams["data_folder"], hparams["valid_share"], hparams["seed"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
