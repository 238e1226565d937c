"""Prepare VoxCeleb2 with ages and genders: python prepare.py hparams/prepare.yaml --data_folder /corpora/voxceleb2"""

import sys

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.corpora.voxceleb2 import read_voxceleb2
from data_prep.prepare import PREPARE_KEYS, prepare

KEYS = {
    **PREPARE_KEYS,
    "data_folder": Key("Folder with vox2_meta.csv and the audio.", str, result=False),
    "ages": Key("Read final_dataframe_extended.csv and ask for ages.", bool),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    clips = read_voxceleb2(hparams["data_folder"], hparams["ages"], hparams["valid_share"], hparams["seed"])
    return prepare(clips, hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
