"""IEMOCAP (Busso et al. 2008, doi 10.1007/s10579-008-9076-6): acted dialogues of ten speakers in five sessions."""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.clips import Clip, CorpusError, Label, require

SOURCE = "https://sail.usc.edu/iemocap/ (on request)"
# The four classes of most publications; excitement counts as happiness there.
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
_CHOICES = tuple(dict.fromkeys(EMOTIONS.values()))
_GENDER = {"F": "female", "M": "male"}
# "[6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]"
_RATED = re.compile(r"\[[\d.]+ - [\d.]+\]\s+(Ses\S+)\s+(\w{3})\s+\[")
# "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me."
_SPOKEN = re.compile(r"(Ses\S+)\s+\[[\d.]+\s*-\s*[\d.]+\]\s*:(.*)")


def read_iemocap(folder: str | Path, valid_session: int, test_session: int) -> Iterator[Clip]:
    """Read the five sessions; one is for validation and one for test, and no speaker is in two sessions.

    Parameters
    ----------
    folder : str or Path
        IEMOCAP_full_release/, with Session<n>/dialog/EmoEvaluation/<dialogue>.txt,
        Session<n>/dialog/transcriptions/<dialogue>.txt and Session<n>/sentences/wav/<dialogue>/<utterance>.wav.
    valid_session, test_session : int
        1 to 5.

    Yields
    ------
    Clip
        With text as it is written ([LAUGHTER] and the like included), gender, and the emotion where it is one of
        neutral, happy (or excited), angry, sad; the other utterances have no question about emotion.

    Raises
    ------
    CorpusError
        A folder is missing, sessions are not two of the five, or a file is not in its format.
    """
    folder = Path(folder)
    if not {valid_session, test_session} < {1, 2, 3, 4, 5} or valid_session == test_session:
        raise CorpusError(f"IEMOCAP: sessions {valid_session} and {test_session}; choose two different ones of 1 to 5")
    rooms = ("dialog/EmoEvaluation", "dialog/transcriptions", "sentences/wav")
    require(folder, [f"Session{n}/{room}" for n in range(1, 6) for room in rooms], "IEMOCAP", SOURCE)
    for number in range(1, 6):
        session = folder / f"Session{number}"
        split = {valid_session: "valid", test_session: "test"}.get(number, "train")
        for ratings in sorted((session / "dialog/EmoEvaluation").glob("Ses*.txt")):  # others are ._Ses... of macOS
            transcript = session / "dialog/transcriptions" / ratings.name
            texts = dict(_SPOKEN.findall(transcript.read_text(encoding="latin-1"))) if transcript.exists() else {}
            rated = _RATED.findall(ratings.read_text(encoding="latin-1"))
            if not rated:
                raise CorpusError(f"{ratings}: no line such as [6.2901 - 8.2357] Ses... neu [...]; fetch it again")
            for utterance, emotion in rated:
                letter = utterance.rpartition("_")[2][0]  # of the one who speaks, not of the one with the markers
                if letter not in _GENDER:
                    raise CorpusError(f"{ratings}: {utterance} does not end in _F<number> or _M<number>")
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
