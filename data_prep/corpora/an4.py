"""CMU AN4 (1991): spelled words, digits and dates; http://www.speech.cs.cmu.edu/databases/an4/."""

import re
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, hold_out, read_lines, require
from data_prep.text import plain_transcript

SOURCE = "http://www.speech.cs.cmu.edu/databases/an4/ (an4_sphere.tar.gz)"
KEYS = {
    "data_folder": Key("The unpacked corpus, with etc/ and wav/.", str, result=False),
    "valid_share": Key("Share of the training speakers of each gender held out for validation.", float),
}
_GENDER = {"m": "male", "f": "female"}


def read_an4(data_folder: str | Path, valid_share: float, seed: int) -> list[Clip]:
    """Read etc/an4_{train,test}.{fileids,transcription}; speakers of the training part are held out for validation.

    Parameters
    ----------
    data_folder : str or Path
        The unpacked corpus; audio is wav/<fileid> with .wav, .flac, .ogg or .sph.
    valid_share : float
        Share of the training speakers of each gender that become the validation split.
    seed : int
        Seed of the choice of speakers.

    Returns
    -------
    list of Clip
        With text and gender, which is the first letter of the speaker's folder (no gender where it is neither m nor f).

    Raises
    ------
    CorpusError
        A file of the corpus is missing or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("etc", "wav"):
    ...     (folder / name).mkdir()
    >>> for part, speaker in (("train", "fash"), ("test", "mjgk")):
    ...     _ = (folder / f"etc/an4_{part}.fileids").write_text(f"{part}/{speaker}/an1-{speaker}\\n")
    ...     _ = (folder / f"etc/an4_{part}.transcription").write_text(f"<s> YES </s> (an1-{speaker})\\n")
    >>> [(clip.id, clip.split, clip.gender, clip.text) for clip in read_an4(folder, valid_share=0.1, seed=0)]
    [('an1-fash', 'train', 'female', 'yes'), ('an1-mjgk', 'test', 'male', 'yes')]
    """
    folder = Path(data_folder)
    names = [f"etc/an4_{part}.{kind}" for part in ("train", "test") for kind in ("fileids", "transcription")]
    require(folder, [*names, "wav"], "AN4", SOURCE)
    clips = []
    for part in ("train", "test"):
        texts = _transcripts(folder / f"etc/an4_{part}.transcription")
        for fileid in (folder / f"etc/an4_{part}.fileids").read_text(encoding="utf-8").split():
            _, speaker, name = ("", "", *fileid.split("/"))[-3:]
            clips.append(
                Clip(
                    dataset="AN4",
                    id=name,
                    audio=_audio_file(folder / "wav" / fileid),
                    split=part,
                    group=speaker,
                    speaker=speaker,
                    text=texts.get(name, ""),
                    gender=_GENDER.get(speaker[:1]),
                )
            )
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: str(clip.gender))


def _transcripts(file: Path) -> dict[str, str]:
    """Utterance id -> transcript, of lines such as "<s> ERASE C Q </s> (an407-fcaw-b)"."""
    texts = {}
    for number, line in read_lines(file):
        match = re.fullmatch(r"(.*)\(([^()\s]+)\)\s*", line)
        if match is None:
            raise CorpusError(f'{file}, line {number}: {line!r} does not end in "(utterance id)"; download it again')
        texts[match[2]] = plain_transcript(match[1])
    return texts


def _audio_file(stem: Path) -> Path:
    """Audio file of an utterance in WAV, FLAC, Ogg or SPHERE; the path of the WAV file if there is none."""
    candidates = [stem.with_name(stem.name + ending) for ending in (".wav", ".flac", ".ogg", ".sph")]
    return next((path for path in candidates if path.exists()), candidates[0])
