"""FMA, the Free Music Archive's data set (Defferrard et al. 2017, arXiv 1612.01840)."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, require

log = logging.getLogger(__name__)

SOURCE = "https://github.com/mdeff/fma (fma_metadata.zip and fma_small.zip, fma_medium.zip, fma_large.zip)"
SUBSETS = ("small", "medium", "large", "full")  # each contains all those before it
KEYS = {
    "data_folder": Key("Folder with fma_metadata/ and fma_<subset>/.", str, result=False),
    "subset": Key("Archive to read.", SUBSETS),
}
_SPLITS = {"training": "train", "validation": "valid", "test": "test"}
_COLUMNS = {"subset": ("set", "subset"), "split": ("set", "split"), "genre": ("track", "genre_top")}


def read_fma(data_folder: str | Path, subset: str) -> Iterator[Clip]:
    """Read fma_metadata/tracks.csv, which has three header lines: two name the columns, the third names the index.

    Parameters
    ----------
    data_folder : str or Path
        Contains fma_metadata/tracks.csv and fma_<subset>/<first three digits>/<six digits>.mp3.
    subset : str
        small (8,000 clips of 30 s, 8 genres), medium (25,000, 16 genres), large (106,574) or full (whole tracks).

    Yields
    ------
    Clip
        With its top genre. Tracks without one (half of large and full) are left out and counted in the log. In the
        publisher's split, no artist is in two parts.

    Raises
    ------
    CorpusError
        The table or the folder is missing, or the table is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("fma_metadata", "fma_small"):
    ...     (folder / name).mkdir()
    >>> header = ",set,set,track\\n,subset,split,genre_top\\ntrack_id,,,\\n"
    >>> _ = (folder / "fma_metadata/tracks.csv").write_text(header + "2,small,training,Rock\\n5,small,test,Folk\\n")
    >>> [(clip.id, clip.split, clip.label("genre")) for clip in read_fma(folder, "small")]
    [('000002', 'train', 'Rock'), ('000005', 'test', 'Folk')]
    """
    folder = Path(data_folder)
    if subset not in SUBSETS:
        raise CorpusError(f"FMA: subset is {subset!r}; choose one of {', '.join(SUBSETS)}")
    require(folder, ["fma_metadata/tracks.csv", f"fma_{subset}"], "FMA", SOURCE)
    included = SUBSETS[: SUBSETS.index(subset) + 1]
    tracks = [track for track in _tracks(folder / "fma_metadata/tracks.csv") if track["subset"] in included]
    genres = tuple(sorted({track["genre"] for track in tracks} - {""}))
    if without := sum(not track["genre"] for track in tracks):
        log.warning("FMA: %d of %d tracks have no top genre and are left out", without, len(tracks))
    for track in tracks:
        if track["genre"]:
            name = f"{int(track['id']):06d}"
            yield Clip(
                dataset="FMA",
                id=name,
                audio=folder / f"fma_{subset}" / name[:3] / f"{name}.mp3",
                split=_SPLITS[track["split"]],
                group=f"fma track {name}",
                labels=(Label("genre", track["genre"], genres),),
            )


def _tracks(file: Path) -> Iterator[dict[str, str]]:
    """Yield id, subset, split and genre of each track."""
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines)
        columns = list(zip(next(reader, []), next(reader, [])))
        index = next(reader, [])
        if index[:1] != ["track_id"] or (missing := set(_COLUMNS.values()) - set(columns)):
            detail = "" if index[:1] != ["track_id"] else f" (no column {sorted(missing)[0]})"
            raise CorpusError(
                f"{file}: not the three header lines of FMA's table{detail}; download it again from {SOURCE}"
            )
        positions = {name: columns.index(column) for name, column in _COLUMNS.items()}
        for row in reader:
            track = {"id": row[0], **{name: row[position] for name, position in positions.items()}}
            if track["split"] not in _SPLITS or track["subset"] not in SUBSETS:
                raise CorpusError(
                    f"{file}, line {reader.line_num}: unknown split {track['split']!r} or subset {track['subset']!r}; "
                    f"download it again from {SOURCE}"
                )
            yield track
