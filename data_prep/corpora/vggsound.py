"""VGGSound (Chen et al. 2020, arXiv 2004.14368): 200 k ten-second clips of YouTube videos, 309 classes."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, CorpusError, Label, drawn, number_in, read_rows, require

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/vggsound/ (vggsound.csv; the audio is on YouTube)"


def read_vggsound(folder: str | Path, valid_share: float, seed: int) -> Iterator[Clip]:
    """Read vggsound.csv, whose lines are YouTube id, start in seconds, label, and train or test.

    Parameters
    ----------
    folder : str or Path
        Holds vggsound.csv and audio/ with the clips in any depth; see `AudioIndex.find_youtube` for their names.
    valid_share : float
        Share of the training videos held out for validation.
    seed : int
        Seed of that choice.

    Yields
    ------
    Clip
        With its class. The rows of a manifest do not list the 309 classes.

    Raises
    ------
    CorpusError
        The list or audio/ is missing, or the list is not in its format.
    """
    folder = Path(folder)
    require(folder, ["vggsound.csv", "audio"], "VGGSound", SOURCE)
    table = folder / "vggsound.csv"
    audio = AudioIndex(folder / "audio")
    columns = ("video", "start", "label", "part")
    for row in read_rows(table, columns, SOURCE, header=False):
        if row["part"] not in ("train", "test"):
            raise CorpusError(f"{table}: {row['video']} is of part {row['part']!r}; fetch it again")
        held_out = row["part"] == "train" and drawn(row["video"], valid_share, seed)
        yield Clip(
            dataset="VGGSound",
            id=f"{row['video']}_{row['start']}",
            audio=audio.find_youtube(row["video"], number_in(table, row["start"])),
            split="valid" if held_out else row["part"],
            group=f"youtube {row['video']}",
            labels=(Label("sound_class", row["label"]),),
        )
