"""Pansori-TEDxKR (Choi and Lee 2018, arXiv 1812.09798): Korean talks as <speaker>/<talk>/*.flac with *.trans.txt."""

from pathlib import Path

from data_prep.clips import Clip, hold_out
from data_prep.corpora.librispeech import read_transcribed_folders


def read_korean_tedx(folder: str | Path, valid_share: float, test_share: float, seed: int) -> list[Clip]:
    """Read all talks; whole speakers are held out for validation and test.

    Parameters
    ----------
    folder : str or Path
        Its sub-folders are the speakers.
    valid_share, test_share : float
        Shares of the speakers; at least one speaker each.
    seed : int
        Seed of that choice.

    Returns
    -------
    list of Clip
        With text as it is written, language ko.

    Raises
    ------
    CorpusError
        No such folder, or no list of transcripts in it.
    """
    clips = [
        Clip(
            dataset="KoreanTEDx",
            id=file.stem,
            audio=file,
            split="train",
            group=speaker,
            language="ko",
            speaker=speaker,
            text=text,
        )
        for file, speaker, text in read_transcribed_folders(Path(folder))
    ]
    clips = hold_out(clips, test_share, "test", seed, stratum=lambda clip: clip.dataset)
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: clip.dataset)
