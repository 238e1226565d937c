"""SpeechOcean762 (Zhang et al. 2021, arXiv 2104.01378): English read by Mandarin speakers, children and adults."""

from pathlib import Path

from data_prep.clips import Clip, CorpusError, hold_out, read_table, require
from data_prep.text import plain_transcript

SOURCE = "https://www.openslr.org/101/ (speechocean762.tar.gz)"
_FILES = ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")
_GENDER = {"m": "male", "f": "female"}


def read_speechocean762(folder: str | Path, valid_share: float, test_share: float | None, seed: int) -> list[Clip]:
    """Read the corpus's Kaldi folders; no speaker is in two splits.

    Parameters
    ----------
    folder : str or Path
        The unpacked corpus; wav.scp names files relative to it.
    valid_share : float
        Share of the training speakers of each gender that become the validation split.
    test_share : float, optional
        None takes the corpus's own test part. A number is for selections that have the training part only: that share
        of its speakers becomes the test split.
    seed : int
        Seed of these choices.

    Returns
    -------
    list of Clip
        With text, and with gender and age where the corpus notes them.

    Raises
    ------
    CorpusError
        A file of the corpus is missing or not in its format.
    """
    folder = Path(folder)
    parts = ["train"] if test_share is not None else ["train", "test"]
    hint = "" if test_share is not None else "; or hold out speakers of the training part with --test_share 0.2"
    require(folder, [f"{part}/{name}" for part in parts for name in _FILES], "SpeechOcean762", SOURCE + hint)
    clips = [clip for part in parts for clip in _read_part(folder, part)]
    if test_share is not None:
        clips = hold_out(clips, test_share, "test", seed, stratum=lambda clip: str(clip.gender))
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: str(clip.gender))


def _read_part(folder: Path, part: str) -> list[Clip]:
    files, texts, speakers, ages, genders = (read_table(folder / part / name) for name in _FILES)
    clips = []
    for utterance, file in files.items():
        if utterance not in speakers:
            raise CorpusError(f"{folder / part / 'utt2spk'}: no speaker for {utterance} of wav.scp; fetch it again")
        speaker = speakers[utterance]
        age, gender = ages.get(speaker), genders.get(speaker)
        if age is not None and not age.isdigit():
            raise CorpusError(f"{folder / part / 'spk2age'}: {age!r} of {speaker} is no whole number of years")
        if gender is not None and gender not in _GENDER:
            raise CorpusError(f"{folder / part / 'spk2gender'}: {gender!r} of {speaker} is neither m nor f")
        clips.append(
            Clip(
                dataset="SpeechOcean762",
                id=utterance,
                audio=folder / file,
                split=part,
                group=speaker,
                speaker=speaker,
                text=plain_transcript(texts.get(utterance, "")),
                gender=_GENDER.get(gender),
                age=None if age is None else int(age),
            )
        )
    return clips
