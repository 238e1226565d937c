"""Prepare Open-ASQA out of the corpora that are there: python prepare.py hparams/prepare.yaml --clotho_folder ...

Each corpus is prepared where its folder is given; null leaves it out.
"""

import sys
from collections.abc import Callable, Iterable

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.clips import Clip, keep_apart
from data_prep.corpora.audiocaps import read_audiocaps
from data_prep.corpora.audioset import read_audioset
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa
from data_prep.corpora.cmu_mosei import read_cmu_mosei
from data_prep.corpora.fma import read_fma
from data_prep.corpora.fsd50k import read_fsd50k
from data_prep.corpora.iemocap import read_iemocap
from data_prep.corpora.libritts import read_libritts
from data_prep.corpora.vggsound import read_vggsound
from data_prep.corpora.voxceleb2 import read_voxceleb2
from data_prep.prepare import PREPARE_KEYS, prepare

READERS: dict[str, Callable[[str, dict], Iterable[Clip]]] = {
    "audioset": lambda folder, h: read_audioset(folder, h["audioset_parts"], h["valid_share"], h["seed"]),
    "vggsound": lambda folder, h: read_vggsound(folder, h["valid_share"], h["seed"]),
    "fsd50k": lambda folder, h: read_fsd50k(folder),
    "audiocaps": lambda folder, h: read_audiocaps(folder),
    "clotho": lambda folder, h: read_clotho(folder),
    "clotho_aqa": lambda folder, h: read_clotho_aqa(folder, h["clotho_folder"]),
    "iemocap": lambda folder, h: read_iemocap(folder, h["iemocap_valid_session"], h["iemocap_test_session"]),
    "libritts": lambda folder, h: read_libritts(folder, h["libritts_subsets"]),
    "voxceleb2": lambda folder, h: read_voxceleb2(folder, h["voxceleb2_ages"], h["valid_share"], h["seed"]),
    "cmu_mosei": lambda folder, h: read_cmu_mosei(folder),
    "fma": lambda folder, h: read_fma(folder, h["fma_subset"]),
}
KEYS = {
    **PREPARE_KEYS,
    **{f"{name}_folder": Key(f"Folder of {name}; null leaves it out.", str, None, result=False) for name in READERS},
    "audioset_parts": Key("Of balanced, unbalanced and strong.", list),
    "iemocap_valid_session": Key("Session for validation.", int),
    "iemocap_test_session": Key("Session for test.", int),
    "libritts_subsets": Key("Split -> folders of LibriTTS.", dict),
    "voxceleb2_ages": Key("Ask for ages, of final_dataframe_extended.csv.", bool),
    "fma_subset": Key("Of FMA's archives.", ("small", "medium", "large", "full")),
}


def main(argv: list[str]) -> int:
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    folders = {name: hparams[f"{name}_folder"] for name in READERS if hparams[f"{name}_folder"] is not None}
    if not folders:
        raise ConfigError(f"no corpus: give at least one of {', '.join(f'--{name}_folder' for name in READERS)}")
    corpora = [lambda name=name, folder=folder: READERS[name](folder, hparams) for name, folder in folders.items()]
    return prepare(keep_apart(corpora), hparams, run_opts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
