"""Prepare FMA: music genres: python prepare.py hparams/prepare.yaml --data_folder /corpora/fma"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.fma import read_fma
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with fma_metadata/ and fma_<subset>/.", str, result=False),
    "subset": Key("Of the archives.", ("small", "medium", "large", "full")),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_fma(hparams["data_folder"], hparams["subset"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
