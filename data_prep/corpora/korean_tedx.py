"""Pansori-TEDxKR (Choi and Lee 2018, arXiv 1812.09798): Korean talks as <speaker>/<talk>/*.flac with *.trans.txt."""

from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, hold_out
from data_prep.corpora.librispeech import read_transcribed_folders

KEYS = {
    "data_folder": Key("Folder of the speakers.", str, result=False),
    "valid_share": Key("Share of the speakers held out for validation.", float),
    "test_share": Key("Share of the speakers held out for test.", float),
}


def read_korean_tedx(data_folder: str | Path, valid_share: float, test_share: float, seed: int) -> list[Clip]:
    """Read all talks. The speakers of validation and test are in no other split.

    Parameters
    ----------
    data_folder : str or Path
        Has one sub-folder per speaker.
    valid_share, test_share : float
        Shares of the speakers; each split gets at least one speaker.
    seed : int
        Seed of the choice of speakers.

    Returns
    -------
    list of Clip
        With the text as published; the language is ko.

    Raises
    ------
    CorpusError
        The folder does not exist, or contains no list of transcripts.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for speaker in ("Kim", "Lee", "Park"):
    ...     (folder / speaker / "talk").mkdir(parents=True)
    ...     _ = (folder / speaker / "talk/talk.trans.txt").write_text(f"{speaker}-1 안녕\\n", encoding="utf-8")
    >>> clips = read_korean_tedx(folder, valid_share=0.1, test_share=0.1, seed=0)
    >>> [(clip.id, clip.split, clip.text) for clip in clips]
    [('Kim-1', 'test', '안녕'), ('Lee-1', 'valid', '안녕'), ('Park-1', 'train', '안녕')]
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
        for file, speaker, text in read_transcribed_folders(Path(data_folder))
    ]
    clips = hold_out(clips, test_share, "test", seed, stratum=lambda clip: clip.dataset)
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: clip.dataset)
