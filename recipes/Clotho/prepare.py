"""Prepare Clotho and Clotho-AQA: python prepare.py hparams/prepare.yaml --data_folder /corpora/clotho"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.clips import keep_apart
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Clotho: lists of captions and the three folders of audio.", str, result=False),
    "aqa_folder": Key("Clotho-AQA, with its lists and audio_files/; null: captions only.", str, None, result=False),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clotho, aqa = hparams["data_folder"], hparams["aqa_folder"]
    corpora = [lambda: read_clotho(clotho)]
    if aqa is not None:
        corpora.append(lambda: read_clotho_aqa(aqa, clotho))
    return prepare(keep_apart(corpora), hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
