"""Sentences read by a text-to-speech program, one audio file per sentence.

    <folder>/speech.tsv     file, book, sentence; tab-separated, without a header
    <folder>/<file>         one sentence each

recipes/TinyReal/synthesise.py writes such a folder.
"""

from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, is_held_out, read_rows, require
from data_prep.text import normaliser

SOURCE = "recipes/TinyReal/synthesise.py"
SYNTHETIC = "synthetic"  # name of the speaker
KEYS = {
    "data_folder": Key("Folder with speech.tsv and the audio that it names.", str, result=False),
    "valid_share": Key("Share of the sentences held out for validation.", float),
    "share": Key("Share of the sentences to use.", float, 1.0),
}

_plain = normaliser(["lower", "punctuation"])


def read_read_text(data_folder: str | Path, valid_share: float, seed: int, share: float = 1.0) -> Iterator[Clip]:
    """Read speech.tsv; transcripts are in lower case without punctuation.

    Parameters
    ----------
    data_folder : str or Path
        Folder with speech.tsv.
    valid_share : float
        Share of the sentences in the validation split.
    seed : int
        Seed of the choice.
    share : float
        Share of the sentences to use; a larger one contains those of a smaller one.

    Raises
    ------
    CorpusError
        The table is missing, or a line has fewer columns.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "speech.tsv").write_text("clips/1.ogg\\temma\\tIt's late, Mr. Knightley!\\n")
    >>> [(clip.id, clip.split, clip.text) for clip in read_read_text(folder, valid_share=0.0, seed=1)]
    [('emma-1', 'train', "it's late mr knightley")]
    """
    folder = Path(data_folder)
    require(folder, ["speech.tsv"], "read text", SOURCE)
    columns = ["file", "book", "sentence"]
    for row in read_rows(folder / "speech.tsv", columns, SOURCE, delimiter="\t", header=False):
        name = f"{row['book']}-{Path(row['file']).stem}"
        if is_held_out(name, share, seed + 1):
            split = "valid" if is_held_out(name, valid_share, seed) else "train"
            text = _plain(row["sentence"])
            yield Clip("ReadText", name, folder / row["file"], split, name, speaker=SYNTHETIC, text=text)
