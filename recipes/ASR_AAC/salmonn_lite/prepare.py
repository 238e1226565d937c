"""Prepare speech and captions out of corpora: python prepare.py hparams/prepare.yaml --clotho_folder ...

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
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa
from data_prep.corpora.librispeech import read_librispeech
from data_prep.prepare import PREPARE_KEYS, prepare

READERS: dict[str, Callable[[str, dict], Iterable[Clip]]] = {
    "librispeech": lambda folder, h: read_librispeech(folder, h["librispeech_subsets"]),
    "audiocaps": lambda folder, h: read_audiocaps(folder),
    "clotho": lambda folder, h: read_clotho(folder),
    "clotho_aqa": lambda folder, h: read_clotho_aqa(folder, h["clotho_folder"]),
}
KEYS = {
    **PREPARE_KEYS,
    **{f"{name}_folder": Key(f"Folder of {name}; null leaves it out.", str, None, result=False) for name in READERS},
    "librispeech_subsets": Key("Split -> folders of LibriSpeech.", dict),
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
