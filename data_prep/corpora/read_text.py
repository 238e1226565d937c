"""Sentences of public-domain books read by a text-to-speech program: one audio file per sentence.

    <folder>/speech.tsv     file, book, sentence; tab-separated, without a header
    <folder>/<file>         one sentence each

The program is the user's choice; recipes/TinyReal names the one that was used and its voice.
"""

from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, is_held_out, require
from data_prep.text import plain_transcript

KEYS = {
    "data_folder": Key("Folder with speech.tsv and the audio that it names.", str, result=False),
    "valid_share": Key("Share of the sentences held out for validation.", float),
}


def read_read_text(data_folder: str | Path, valid_share: float, seed: int) -> list[Clip]:
    """Read speech.tsv; transcripts are in lower case without punctuation.

    Parameters
    ----------
    data_folder : path
        Folder with speech.tsv.
    valid_share : float
        Share of the sentences in the validation split.
    seed : int
        Seed of the choice.

    Raises
    ------
    CorpusError
        The table is missing, or a line has another number of columns.
    """
    folder = Path(data_folder)
    require(folder, ["speech.tsv"], "read text", "your text-to-speech program (see recipes/TinyReal)")
    clips = []
    for number, line in enumerate((folder / "speech.tsv").read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("\t")
        if len(columns) != 3:
            raise CorpusError(f"{folder / 'speech.tsv'}, line {number}: {len(columns)} columns, expected 3")
        file, book, sentence = columns
        name = f"{book}-{Path(file).stem}"
        split = "valid" if is_held_out(name, valid_share, seed) else "train"
        text = plain_transcript(sentence)
        if text:
            clips.append(Clip("ReadText", name, folder / file, split, name, speaker="synthetic", text=text))
    return clips
