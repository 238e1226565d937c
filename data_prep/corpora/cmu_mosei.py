"""CMU-MOSEI (Zadeh et al. 2018, ACL): sentences of YouTube monologues with sentiment and emotions."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

from data_prep.clips import Clip, CorpusError, Label, read_lines, require

log = logging.getLogger(__name__)

SOURCE = (
    "http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/ (CMU_MOSEI.zip, CMU_MOSEI_Labels.csd) and "
    "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK (cmu_mosei_std_folds.py)"
)
_LABELS, _FOLDS = "CMU_MOSEI_Labels.csd", "cmu_mosei_std_folds.py"
_AUDIO, _TEXT = "Raw/Audio/Full/WAV_16000", "Raw/Transcript/Segmented/Combined"
_SPLITS = {"standard_train_fold": "train", "standard_valid_fold": "valid", "standard_test_fold": "test"}
# Columns of the labels after the first, which is the sentiment.
_EMOTIONS = ("happy", "sad", "angry", "surprised", "disgusted", "fearful")
_SENTIMENTS = ("negative", "neutral", "positive")


def read_cmu_mosei(folder: str | Path) -> Iterator[Clip]:
    """Read the labelled segments of the videos in the publisher's standard folds.

    Parameters
    ----------
    folder : str or Path
        Holds Raw/ of CMU_MOSEI.zip, CMU_MOSEI_Labels.csd (HDF5: for each video its segments' times and seven numbers)
        and cmu_mosei_std_folds.py (three lists of videos, which are read and not executed). Transcripts are lines
        video___number___start___end___text; some releases have damaged ones, whose lines are passed over and logged.

    Yields
    ------
    Clip
        A segment of a video: its sentiment (negative below 0, positive above), the strongest emotion where one is
        stronger than all others, and the transcript whose start is within a fifth of a second. Videos in no fold,
        which the publisher leaves out as well, are left out.

    Raises
    ------
    CorpusError
        A file is missing or not in its format, or h5py is not installed.
    """
    folder = Path(folder)
    require(folder, [_LABELS, _FOLDS, _AUDIO, _TEXT], "CMU-MOSEI", SOURCE)
    try:
        import h5py
    except ImportError as error:
        raise CorpusError(f"{folder / _LABELS} is HDF5: pip install h5py") from error
    folds = _folds(folder / _FOLDS)
    with h5py.File(folder / _LABELS) as file:
        videos = next(iter(file.values()))["data"]  # the one sequence of the file, named All Labels
        for video in videos:
            if video not in folds:
                continue
            texts = _texts(folder / _TEXT / f"{video}.txt")
            intervals, values = videos[video]["intervals"][()], videos[video]["features"][()]
            order = sorted(range(len(intervals)), key=lambda number: tuple(intervals[number]))
            for number, position in enumerate(order):
                start, end = (float(second) for second in intervals[position])
                start = max(start, 0.0)
                yield Clip(
                    dataset="CMU-MOSEI",
                    id=f"{video}_{number}",
                    audio=folder / _AUDIO / f"{video}.wav",
                    split=folds[video],
                    group=f"youtube {video}",
                    start=start,
                    duration=round(end - start, 6),
                    text=_text_at(start, texts),
                    labels=_labels([float(value) for value in values[position]]),
                )


def _labels(values: list[float]) -> tuple[Label, ...]:
    sentiment, *emotions = values
    labels = [Label("sentiment", _SENTIMENTS[1 + (sentiment > 0) - (sentiment < 0)], _SENTIMENTS)]
    strongest = max(emotions)
    if strongest > 0 and emotions.count(strongest) == 1:
        labels.append(Label("emotion", _EMOTIONS[emotions.index(strongest)], _EMOTIONS))
    return tuple(labels)


def _texts(file: Path) -> list[tuple[float, str]]:
    """Start and text of each segment of a video; none where the video has no transcript."""
    if not file.exists():
        return []
    texts, damaged = [], 0
    for _, line in read_lines(file, "utf-8-sig", "cp1252", "latin-1"):  # typed by many people on many computers
        try:
            _, _, start, _, text = line.split("___", 4)
            texts.append((float(start), text.strip()))
        except ValueError:
            damaged += 1
    if damaged:
        log.warning("%s: %d lines are not video___number___start___end___text and are passed over", file, damaged)
    return texts


def _text_at(start: float, texts: list[tuple[float, str]]) -> str | None:
    distance, text = min(((abs(begin - start), text) for begin, text in texts), default=(1.0, ""))
    return text if distance <= 0.2 and text else None


def _folds(file: Path) -> dict[str, str]:
    """Video -> split, from a Python file that assigns lists to names; it is parsed and never run."""
    folds: dict[str, str] = {}
    found = set()
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        name = getattr(statement.targets[0], "id", None) if isinstance(statement, ast.Assign) else None
        if name in _SPLITS:
            found.add(name)
            folds |= dict.fromkeys(ast.literal_eval(statement.value), _SPLITS[name])
    if lacking := set(_SPLITS) - found:
        raise CorpusError(f"{file}: no list {', '.join(sorted(lacking))}; fetch it again from {SOURCE}")
    return folds
