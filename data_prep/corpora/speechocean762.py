"""SpeechOcean762 (Zhang et al. 2021, arXiv 2104.01378): English read by Mandarin speakers, children and adults."""

from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, hold_out, require
from data_prep.corpora.kaldi import read_kaldi_part
from data_prep.text import plain_transcript

SOURCE = "https://www.openslr.org/101/ (speechocean762.tar.gz)"
KEYS = {
    "data_folder": Key("The unpacked corpus, with train/, test/ and WAVE/.", str, result=False),
    "valid_share": Key("Share of the training speakers of each gender held out for validation.", float),
    "test_share": Key("Share of the training speakers to test on; null: the corpus's own test part.", float, None),
}
_FILES = ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")


def read_speechocean762(data_folder: str | Path, valid_share: float, test_share: float | None, seed: int) -> list[Clip]:
    """Read the corpus's Kaldi folders; no speaker is in two splits.

    Parameters
    ----------
    data_folder : str or Path
        The unpacked corpus; paths in wav.scp are relative to it.
    valid_share : float
        Share of the training speakers of each gender that form the validation split.
    test_share : float, optional
        None takes the corpus's own test part. A number is for copies without that part: this share of the training
        speakers forms the test split.
    seed : int
        Seed of the choice of speakers.

    Returns
    -------
    list of Clip
        With text, and with gender and age if the corpus records them.

    Raises
    ------
    CorpusError
        A file of the corpus is missing or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "train").mkdir()
    >>> lines = ("u1 WAVE/u1.wav", "u1 GOOD MORNING", "u1 s1", "s1 9", "s1 f")
    >>> for name, line in zip(_FILES, lines):
    ...     _ = (folder / "train" / name).write_text(line)
    >>> clips = read_speechocean762(folder, valid_share=0.1, test_share=0.2, seed=0)
    >>> [(clip.id, clip.split, clip.speaker, clip.age, clip.gender, clip.text) for clip in clips]
    [('u1', 'train', 's1', 9, 'female', 'good morning')]
    """
    folder = Path(data_folder)
    parts = ["train"] if test_share is not None else ["train", "test"]
    hint = "" if test_share is not None else "; or hold out speakers of the training part with --test_share 0.2"
    require(folder, [f"{part}/{name}" for part in parts for name in _FILES], "SpeechOcean762", SOURCE + hint)
    clips = [
        clip
        for part in parts
        for clip in read_kaldi_part(folder / part, folder, "SpeechOcean762", part, normalise=plain_transcript)
    ]
    if test_share is not None:
        clips = hold_out(clips, test_share, "test", seed, stratum=lambda clip: str(clip.gender))
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: str(clip.gender))
