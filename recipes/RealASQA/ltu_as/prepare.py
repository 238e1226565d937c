"""Prepare AN4, ESC-50 and SpeechOcean762 as one set of questions and answers: python prepare.py hparams/prepare.yaml

Folders are given as --an4_folder, --esc50_folder and --speechocean762_folder.
"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.an4 import read_an4
from data_prep.corpora.esc50 import read_esc50
from data_prep.corpora.speechocean762 import read_speechocean762
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "an4_folder": Key("CMU AN4, with etc/ and wav/.", str, result=False),
    "esc50_folder": Key("ESC-50, with audio/ and meta/.", str, result=False),
    "speechocean762_folder": Key("SpeechOcean762, with train/, test/ and WAVE/.", str, result=False),
    "esc10": Key("Keep the ten classes of ESC-10 only.", bool, False),
    "test_fold": Key("Fold of ESC-50 to test on.", int),
    "test_share": Key("Share of SpeechOcean762's training speakers to test on; null takes its test part.", float, None),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    share, seed = hparams["valid_share"], hparams["seed"]
    clips = read_an4(hparams["an4_folder"], share, seed)
    clips += read_esc50(hparams["esc50_folder"], hparams["esc10"], hparams["test_fold"], share, seed)
    clips += read_speechocean762(hparams["speechocean762_folder"], share, hparams["test_share"], seed)
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
