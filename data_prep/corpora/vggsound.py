"""VGGSound (Chen et al. 2020, arXiv 2004.14368): 200 k ten-second clips of YouTube videos, 309 classes."""

from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, CorpusError, Label, is_held_out, parse_number, read_rows, require

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/vggsound/ (vggsound.csv; the audio is on YouTube)"

KEYS = {
    "data_folder": Key("Folder with vggsound.csv and audio/.", str, result=False),
    "valid_share": Key("Share of the training videos held out for validation.", float),
}


def read_vggsound(data_folder: str | Path, valid_share: float, seed: int) -> Iterator[Clip]:
    """Read vggsound.csv, whose lines are YouTube id, start in seconds, label, and train or test.

    Parameters
    ----------
    data_folder : str or Path
        Contains vggsound.csv, and audio/ with the clips at any depth; see `AudioIndex.find_youtube` for their names.
    valid_share : float
        Share of the training videos held out for validation.
    seed : int
        Seed of the choice of videos.

    Yields
    ------
    Clip
        With its class. The 309 classes are too many to list in every row.

    Raises
    ------
    CorpusError
        The list or audio/ is missing, or the list is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "audio").mkdir()
    >>> _ = (folder / "vggsound.csv").write_text('abc,30,"dog barking",test\\n')
    >>> clips = read_vggsound(folder, valid_share=0.1, seed=0)
    >>> [(clip.id, clip.split, clip.group, clip.label("sound_class")) for clip in clips]
    [('abc_30', 'test', 'youtube abc', 'dog barking')]
    """
    folder = Path(data_folder)
    require(folder, ["vggsound.csv", "audio"], "VGGSound", SOURCE)
    table = folder / "vggsound.csv"
    audio = AudioIndex(folder / "audio")
    columns = ("video", "start", "label", "part")
    for row in read_rows(table, columns, SOURCE, header=False):
        if row["part"] not in ("train", "test"):
            raise CorpusError(
                f"{table}: {row['video']} has part {row['part']!r}, which is neither train nor test; "
                f"download it again from {SOURCE}"
            )
        held_out = row["part"] == "train" and is_held_out(row["video"], valid_share, seed)
        yield Clip(
            dataset="VGGSound",
            id=f"{row['video']}_{row['start']}",
            audio=audio.find_youtube(row["video"], parse_number(table, row["start"])),
            split="valid" if held_out else row["part"],
            group=f"youtube {row['video']}",
            labels=(Label("sound_class", row["label"]),),
        )
