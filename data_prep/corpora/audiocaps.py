"""AudioCaps (Kim et al. 2019, NAACL): captions written for ten-second clips of AudioSet."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, parse_number, read_rows, require

SOURCE = "https://github.com/cdjkim/audiocaps (dataset/{train,val,test}.csv; the audio is on YouTube)"
KEYS = {"data_folder": Key("Folder with train.csv, val.csv, test.csv and audio/.", str, result=False)}
PARTS = {"train": "train", "val": "valid", "test": "test"}


def read_audiocaps(data_folder: str | Path) -> Iterator[Clip]:
    """Read the captions of all three parts.

    Parameters
    ----------
    data_folder : str or Path
        Contains train.csv, val.csv and test.csv (audiocap_id, youtube_id, start_time, caption), and audio/ with the
        clips at any depth. The publisher provides no audio and therefore no file names. Files are found by the names
        that the usual downloaders give them (see `AudioIndex.find_youtube`) and by <audiocap_id>.

    Yields
    ------
    Clip
        With all captions of the clip: one in the training part, five in the others.

    Raises
    ------
    CorpusError
        A list or audio/ is missing, or a list is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "audio").mkdir()
    >>> (folder / "audio/Yabc.wav").touch()
    >>> lines = {"train": "", "val": "1,abc,30,A dog barks\\n2,abc,30,The bark of a dog\\n", "test": ""}
    >>> for part, text in lines.items():
    ...     _ = (folder / f"{part}.csv").write_text(f"audiocap_id,youtube_id,start_time,caption\\n{text}")
    >>> [(clip.id, clip.audio.name, clip.split, clip.captions) for clip in read_audiocaps(folder)]
    [('abc_30', 'Yabc.wav', 'valid', ('A dog barks', 'The bark of a dog'))]
    """
    folder = Path(data_folder)
    require(folder, ["audio", *(f"{part}.csv" for part in PARTS)], "AudioCaps", SOURCE)
    audio = AudioIndex(folder / "audio")
    for part, split in PARTS.items():
        table = folder / f"{part}.csv"
        captions: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for row in read_rows(table, ("audiocap_id", "youtube_id", "start_time", "caption"), SOURCE):
            captions[row["youtube_id"], row["start_time"]].append((row["audiocap_id"], row["caption"]))
        for (video, start), entries in captions.items():
            file = audio.find_youtube(video, parse_number(table, start))
            if file not in audio:
                file = next((other for number, _ in entries if (other := audio.find(number)) in audio), file)
            yield Clip(
                dataset="AudioCaps",
                id=f"{video}_{start}",
                audio=file,
                split=split,
                group=f"youtube {video}",
                captions=tuple(caption for _, caption in entries),
            )
