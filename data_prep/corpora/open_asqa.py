"""Open-ASQA (Gong et al. 2023, arXiv 2309.14405): the corpora of LTU-AS, as far as they are available."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, read_collection
from data_prep.corpora import audioset, fma, iemocap, libritts, voxceleb2
from data_prep.corpora.audiocaps import read_audiocaps
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa
from data_prep.corpora.cmu_mosei import read_cmu_mosei
from data_prep.corpora.fsd50k import read_fsd50k
from data_prep.corpora.vggsound import read_vggsound

CORPORA = (
    "audioset",
    "vggsound",
    "fsd50k",
    "audiocaps",
    "clotho",
    "clotho_aqa",
    "iemocap",
    "libritts",
    "voxceleb2",
    "cmu_mosei",
    "fma",
)
KEYS = {
    **{f"{name}_folder": Key(f"Folder of {name}; null leaves it out.", str, None, result=False) for name in CORPORA},
    "audioset_parts": audioset.KEYS["parts"],
    "iemocap_valid_session": iemocap.KEYS["valid_session"],
    "iemocap_test_session": iemocap.KEYS["test_session"],
    "libritts_subsets": libritts.KEYS["subsets"],
    "voxceleb2_ages": voxceleb2.KEYS["ages"],
    "fma_subset": fma.KEYS["subset"],
    "valid_share": Key("Share held out of AudioSet, VGGSound and VoxCeleb2, which have no validation part.", float),
}


def read_open_asqa(valid_share: float, seed: int, **options: Any) -> Iterator[Clip]:
    """Read the corpora whose folder is given. Recordings that one of them holds out are in no training clip.

    Parameters
    ----------
    valid_share : float
        Share held out for validation of the corpora without a validation part.
    seed : int
        Seed of the held-out shares.
    **options
        The other values of `KEYS`.

    Yields
    ------
    Clip
        As the readers of the corpora yield them.

    Raises
    ------
    ConfigError
        No folder is given.
    CorpusError
        A corpus is incomplete or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "audio").mkdir()
    >>> _ = (folder / "vggsound.csv").write_text("abc,30,dog barking,test\\n")
    >>> options = dict.fromkeys(KEYS) | {"vggsound_folder": folder, "valid_share": 0.1}
    >>> [(clip.dataset, clip.id, clip.split) for clip in read_open_asqa(**options, seed=0)]
    [('VGGSound', 'abc_30', 'test')]
    """
    sessions = options["iemocap_valid_session"], options["iemocap_test_session"]
    readers: dict[str, Callable[[str], Iterable[Clip]]] = {
        "audioset": lambda folder: audioset.read_audioset(folder, options["audioset_parts"], valid_share, seed),
        "vggsound": lambda folder: read_vggsound(folder, valid_share, seed),
        "fsd50k": read_fsd50k,
        "audiocaps": read_audiocaps,
        "clotho": read_clotho,
        "clotho_aqa": lambda folder: read_clotho_aqa(folder, options["clotho_folder"]),
        "iemocap": lambda folder: iemocap.read_iemocap(folder, *sessions),
        "libritts": lambda folder: libritts.read_libritts(folder, options["libritts_subsets"]),
        "voxceleb2": lambda folder: voxceleb2.read_voxceleb2(folder, options["voxceleb2_ages"], valid_share, seed),
        "cmu_mosei": read_cmu_mosei,
        "fma": lambda folder: fma.read_fma(folder, options["fma_subset"]),
    }
    return read_collection(readers, options)
