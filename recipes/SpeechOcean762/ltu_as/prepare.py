"""Prepare SpeechOcean762: python prepare.py hparams/prepare.yaml --data_folder /corpora/speechocean762"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.speechocean762 import read_speechocean762
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("The unpacked corpus, with train/, test/ and WAVE/.", str, result=False),
    "test_share": Key("Share of the training speakers to test on; null takes the corpus's own test part.", float, None),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    options = {name: hparams[name] for name in ("valid_share", "test_share", "seed")}
    return prepare(read_speechocean762(hparams["data_folder"], **options), hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
