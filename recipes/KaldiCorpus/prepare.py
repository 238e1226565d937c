"""Prepare a corpus in Kaldi's data folders: python prepare.py hparams/prepare.yaml --data_folder /corpora/clinic"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.kaldi import read_kaldi
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Holds the data folders.", str, result=False),
    "parts": Key("Split -> data folder, under train, valid and test.", dict),
    "audio_root": Key("What relative paths of wav.scp start from; null: data_folder.", str, None, result=False),
    "dataset": Key("Name of the corpus, as it stands in the manifests.", str),
    "language": Key("ISO 639-1 code of the speech, as ko.", str),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    folder = hparams["data_folder"]
    root = hparams["audio_root"] or folder
    clips = read_kaldi(folder, hparams["parts"], root, hparams["dataset"], hparams["language"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
