"""AudioCaps (Kim et al. 2019, NAACL): captions written for ten-second clips of AudioSet."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, number_in, read_rows, require

SOURCE = "https://github.com/cdjkim/audiocaps (dataset/{train,val,test}.csv; the audio is on YouTube)"
PARTS = {"train": "train", "val": "valid", "test": "test"}


def read_audiocaps(folder: str | Path) -> Iterator[Clip]:
    """Read the captions of all three parts.

    Parameters
    ----------
    folder : str or Path
        Holds train.csv, val.csv and test.csv (audiocap_id, youtube_id, start_time, caption), and audio/ with the clips
        in any depth. The publisher gives no audio and hence no file names: those of the usual downloaders are found
        (see `AudioIndex.find_youtube`), and <audiocap_id>.

    Yields
    ------
    Clip
        With all captions of the clip: one for training, five for the others.

    Raises
    ------
    CorpusError
        A list or audio/ is missing, or a list is not in its format.
    """
    folder = Path(folder)
    require(folder, ["audio", *(f"{part}.csv" for part in PARTS)], "AudioCaps", SOURCE)
    audio = AudioIndex(folder / "audio")
    for part, split in PARTS.items():
        table = folder / f"{part}.csv"
        captions: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for row in read_rows(table, ("audiocap_id", "youtube_id", "start_time", "caption"), SOURCE):
            captions[row["youtube_id"], row["start_time"]].append((row["audiocap_id"], row["caption"]))
        for (video, start), entries in captions.items():
            file = audio.find_youtube(video, number_in(table, start))
            if not audio.holds(file):
                file = next((found for number, _ in entries if audio.holds(found := audio.find(number))), file)
            yield Clip(
                dataset="AudioCaps",
                id=f"{video}_{start}",
                audio=file,
                split=split,
                group=f"youtube {video}",
                captions=tuple(caption for _, caption in entries),
            )
