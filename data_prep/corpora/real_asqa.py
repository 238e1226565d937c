"""A small Open-ASQA of real audio: AN4, ESC-50 (or ESC-10) and SpeechOcean762."""

from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip
from data_prep.corpora import esc50, speechocean762
from data_prep.corpora.an4 import read_an4

KEYS = {
    "an4_folder": Key("CMU AN4, with etc/ and wav/.", str, result=False),
    "esc50_folder": Key("ESC-50, with audio/ and meta/.", str, result=False),
    "speechocean762_folder": Key("SpeechOcean762, with train/, test/ and WAVE/.", str, result=False),
    "esc10": esc50.KEYS["esc10"],
    "test_fold": Key("Fold of ESC-50 to test on.", int),
    "valid_share": Key("Share of the training speakers and recordings held out for validation.", float),
    "test_share": Key("Share of SpeechOcean762's training speakers to test on; null: its test part.", float, None),
}


def read_real_asqa(
    an4_folder: str | Path,
    esc50_folder: str | Path,
    speechocean762_folder: str | Path,
    esc10: bool,
    test_fold: int,
    valid_share: float,
    test_share: float | None,
    seed: int,
) -> list[Clip]:
    """Read all three corpora.

    Parameters
    ----------
    an4_folder, esc50_folder, speechocean762_folder : str or Path
        Folders of the corpora.
    esc10, test_fold
        See `data_prep.corpora.esc50.read_esc50`.
    valid_share : float
        Share held out for validation, in each corpus.
    test_share : float, optional
        See `data_prep.corpora.speechocean762.read_speechocean762`.
    seed : int
        Seed of the held-out shares.

    Raises
    ------
    CorpusError
        A corpus is incomplete or not in its format.
    """
    clips = read_an4(an4_folder, valid_share, seed)
    clips += esc50.read_esc50(esc50_folder, esc10, test_fold, valid_share, seed)
    clips += speechocean762.read_speechocean762(speechocean762_folder, valid_share, test_share, seed)
    return clips
