"""AudioSet (Gemmeke et al. 2017) and its strong labels (Hershey et al. 2021): ten-second clips of YouTube videos."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, CorpusError, Event, is_held_out, parse_number, read_rows, require

SOURCE = "https://research.google.com/audioset/download.html (the audio is on YouTube)"
STRONG_SOURCE = "https://research.google.com/audioset/download_strong.html (the audio is on YouTube)"
KEYS = {
    "data_folder": Key("Folder with the lists of segments and audio/.", str, result=False),
    "parts": Key("Parts to read: balanced (20k), unbalanced (2M), strong.", list),
    "valid_share": Key("Share of the training videos held out for validation.", float),
}
_NAMES, _STRONG_NAMES = "class_labels_indices.csv", "mid_to_display_name.tsv"
_WEAK = {"balanced": "balanced_train_segments.csv", "unbalanced": "unbalanced_train_segments.csv"}
_WEAK_TEST = "eval_segments.csv"
_STRONG, _STRONG_TEST = "audioset_train_strong.tsv", "audioset_eval_strong.tsv"


def read_audioset(data_folder: str | Path, parts: Sequence[str], valid_share: float, seed: int) -> Iterator[Clip]:
    """Read the lists of segments line by line; the names of the audio files are kept in memory.

    Parameters
    ----------
    data_folder : str or Path
        Contains the publisher's lists, and audio/ with the clips at any depth. The publisher provides no audio and
        therefore no file names. Files are found by the names that the usual downloaders give them (see
        `AudioIndex.find_youtube`).
    parts : sequence of str
        One or more of balanced (22 k clips, "AudioSet-20k"), unbalanced (2 M, "AudioSet-2M") and strong (100 k clips
        with times).
    valid_share : float
        Share of the training videos held out for validation.
    seed : int
        Seed of the choice of videos.

    Yields
    ------
    Clip
        Dataset AudioSet or AudioSet-strong, with its sounds as events, which have times in the strong part. Test clips
        are those of the publisher's evaluation lists (weak, strong) for the requested parts.

    Raises
    ------
    CorpusError
        A list or audio/ is missing, a list is not in its format, or contains an unknown class.

    Examples
    --------
    >>> folder, header = getfixture("tmp_path"), "# three\\n# lines\\n# of comment\\n"
    >>> (folder / "audio").mkdir()
    >>> _ = (folder / "class_labels_indices.csv").write_text("index,mid,display_name\\n0,/m/09x0r,Speech\\n")
    >>> _ = (folder / "balanced_train_segments.csv").write_text(header + 'abc, 30.000, 40.000, "/m/09x0r"\\n')
    >>> _ = (folder / "eval_segments.csv").write_text(header)
    >>> [(clip.id, clip.split, clip.events) for clip in read_audioset(folder, ["balanced"], valid_share=0.1, seed=0)]
    [('abc', 'train', (Event(sound='speech', start=None, end=None),))]
    """
    folder = Path(data_folder)
    if not parts or set(parts) - {*_WEAK, "strong"}:
        raise CorpusError(f"AudioSet: parts is {list(parts)}; choose among balanced, unbalanced and strong")
    weak = [part for part in _WEAK if part in parts]
    if weak:
        needed = [_NAMES, *(_WEAK[part] for part in weak), _WEAK_TEST]
        require(folder, [*needed, "audio"], "AudioSet", SOURCE)
    if "strong" in parts:
        require(folder, [_STRONG_NAMES, _STRONG, _STRONG_TEST, "audio"], "AudioSet's strong labels", STRONG_SOURCE)
    audio = AudioIndex(folder / "audio")

    def split_of(video: str, test: bool) -> str:
        return "test" if test else "valid" if is_held_out(video, valid_share, seed) else "train"

    if weak:
        names = {row["mid"]: row["display_name"] for row in read_rows(folder / _NAMES, ("mid", "display_name"), SOURCE)}
        for name in [*(_WEAK[part] for part in weak), _WEAK_TEST]:
            file = folder / name
            columns = ("video", "start", "end", "labels")
            # Three lines of comment, the third of which names the columns.
            for row in read_rows(file, columns, SOURCE, header=False, skip=3):
                yield Clip(
                    dataset="AudioSet",
                    id=row["video"],
                    audio=audio.find_youtube(row["video"], parse_number(file, row["start"])),
                    split=split_of(row["video"], name == _WEAK_TEST),
                    group=f"youtube {row['video']}",
                    events=tuple(Event(_name(mid, names, file)) for mid in row["labels"].split(",")),
                )
    if "strong" in parts:
        table = read_rows(folder / _STRONG_NAMES, ("mid", "name"), STRONG_SOURCE, delimiter="\t", header=False)
        names = {row["mid"]: row["name"] for row in table}
        for name in (_STRONG, _STRONG_TEST):
            file = folder / name
            for segment, events in _strong_events(file, names).items():
                video, _, start = segment.rpartition("_")  # milliseconds
                yield Clip(
                    dataset="AudioSet-strong",
                    id=segment,
                    audio=audio.find_youtube(video, parse_number(file, start) / 1000),
                    split=split_of(video, name == _STRONG_TEST),
                    group=f"youtube {video}",
                    events=tuple(events),
                )


def _strong_events(file: Path, names: dict[str, str]) -> dict[str, list[Event]]:
    """Map each segment to its events; the lines of a segment need not follow each other."""
    columns = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
    events: dict[str, list[Event]] = defaultdict(list)
    for row in read_rows(file, columns, STRONG_SOURCE, delimiter="\t"):
        start, end = (parse_number(file, row[column]) for column in columns[1:3])
        events[row["segment_id"]].append(Event(_name(row["label"], names, file), start, end))
    return events


def _name(mid: str, names: dict[str, str], file: Path) -> str:
    """Name of a class in lower case, as it is written in a sentence."""
    if mid not in names:
        raise CorpusError(f"{file}: class {mid} is in no list of names; download all lists again from one source")
    return names[mid].lower()
