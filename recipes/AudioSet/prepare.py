"""Prepare AudioSet: python prepare.py hparams/prepare.yaml --data_folder /corpora/audioset"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.audioset import read_audioset
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with the lists of segments and audio/.", str, result=False),
    "parts": Key("Of balanced (20k), unbalanced (2M) and strong.", list),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_audioset(hparams["data_folder"], hparams["parts"], hparams["valid_share"], hparams["seed"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
