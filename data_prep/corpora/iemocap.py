"""IEMOCAP (Busso et al. 2008, doi 10.1007/s10579-008-9076-6): acted dialogues of ten speakers in five sessions."""

import re
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, require

SOURCE = "https://sail.usc.edu/iemocap/ (on request)"
KEYS = {
    "data_folder": Key("IEMOCAP_full_release/, with Session1 ... Session5.", str, result=False),
    "valid_session": Key("Session for validation.", int),
    "test_session": Key("Session for test.", int),
}
# The four classes of most publications, which count excitement as happiness.
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
_CHOICES = tuple(dict.fromkeys(EMOTIONS.values()))
_GENDER = {"F": "female", "M": "male"}
# "[6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]"
_RATED = re.compile(r"\[[\d.]+ - [\d.]+\]\s+(Ses\S+)\s+(\w{3})\s+\[")
# "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me."
_SPOKEN = re.compile(r"(Ses\S+)\s+\[[\d.]+\s*-\s*[\d.]+\]\s*:(.*)")


def read_iemocap(data_folder: str | Path, valid_session: int, test_session: int) -> Iterator[Clip]:
    """Read the five sessions; one is for validation and one for test, and no speaker is in two sessions.

    Parameters
    ----------
    data_folder : str or Path
        IEMOCAP_full_release/, with Session<n>/dialog/EmoEvaluation/<dialogue>.txt,
        Session<n>/dialog/transcriptions/<dialogue>.txt and Session<n>/sentences/wav/<dialogue>/<utterance>.wav.
    valid_session, test_session : int
        1 to 5.

    Yields
    ------
    Clip
        With gender, the text as published (with marks such as [LAUGHTER]), and the emotion if it is neutral, happy (or
        excited), angry or sad. Other utterances have no emotion label.

    Raises
    ------
    CorpusError
        A folder is missing, the sessions are not two of the five, or a file is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for number in range(1, 6):
    ...     for name in ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav"):
    ...         (folder / f"Session{number}" / name).mkdir(parents=True)
    >>> dialog, name = folder / "Session1/dialog", "Ses01F_impro01"
    >>> _ = (dialog / f"EmoEvaluation/{name}.txt").write_text(f"[6.29 - 8.24]\\t{name}_F000\\tneu\\t[2.5, 2.5, 2.5]\\n")
    >>> _ = (dialog / f"transcriptions/{name}.txt").write_text(f"{name}_F000 [006.29-008.24]: Excuse me.\\n")
    >>> clips = read_iemocap(folder, valid_session=4, test_session=5)
    >>> [(clip.split, clip.speaker, clip.gender, clip.text, clip.label("emotion")) for clip in clips]
    [('train', 'Ses01F', 'female', 'Excuse me.', 'neutral')]
    """
    folder = Path(data_folder)
    if not {valid_session, test_session} < {1, 2, 3, 4, 5} or valid_session == test_session:
        raise CorpusError(
            f"IEMOCAP: sessions {valid_session} and {test_session}; choose two different ones from 1 to 5"
        )
    folders = ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav")
    require(folder, [f"Session{n}/{name}" for n in range(1, 6) for name in folders], "IEMOCAP", SOURCE)
    for number in range(1, 6):
        session = folder / f"Session{number}"
        split = {valid_session: "valid", test_session: "test"}.get(number, "train")
        for ratings in sorted((session / "dialog/EmoEvaluation").glob("Ses*.txt")):  # not the ._Ses... files of macOS
            transcript = session / "dialog/transcriptions" / ratings.name
            texts = dict(_SPOKEN.findall(transcript.read_text(encoding="latin-1"))) if transcript.exists() else {}
            rated = _RATED.findall(ratings.read_text(encoding="latin-1"))
            if not rated:
                raise CorpusError(f"{ratings}: no line such as [6.2901 - 8.2357] Ses... neu [...]; download it again")
            for utterance, emotion in rated:
                letter = utterance.rpartition("_")[2][0]  # the speaker, not the actor with the markers
                if letter not in _GENDER:
                    raise CorpusError(
                        f"{ratings}: {utterance} does not end in _F<number> or _M<number>; download it again"
                    )
                known = emotion in EMOTIONS
                yield Clip(
                    dataset="IEMOCAP",
                    id=utterance,
                    audio=session / "sentences/wav" / ratings.stem / f"{utterance}.wav",
                    split=split,
                    group=f"iemocap session {number}",
                    speaker=f"Ses{number:02d}{letter}",
                    gender=_GENDER[letter],
                    text=texts.get(utterance, "").strip(),
                    labels=(Label("emotion", EMOTIONS[emotion], _CHOICES),) if known else (),
                )
