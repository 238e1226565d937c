"""CMU-MOSEI (Zadeh et al. 2018, ACL): sentences of YouTube monologues with sentiment and emotions."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, read_lines, require

log = logging.getLogger(__name__)

SOURCE = (
    "http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/ (CMU_MOSEI.zip, CMU_MOSEI_Labels.csd) and "
    "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK (cmu_mosei_std_folds.py)"
)
KEYS = {
    "data_folder": Key("Folder with Raw/, CMU_MOSEI_Labels.csd and cmu_mosei_std_folds.py.", str, result=False),
}
_LABELS, _FOLDS = "CMU_MOSEI_Labels.csd", "cmu_mosei_std_folds.py"
_AUDIO, _TEXT = "Raw/Audio/Full/WAV_16000", "Raw/Transcript/Segmented/Combined"
_SPLITS = {"standard_train_fold": "train", "standard_valid_fold": "valid", "standard_test_fold": "test"}
# Columns of the labels after the first, which is the sentiment.
_EMOTIONS = ("happy", "sad", "angry", "surprised", "disgusted", "fearful")
_SENTIMENTS = ("negative", "neutral", "positive")


def read_cmu_mosei(data_folder: str | Path) -> Iterator[Clip]:
    """Read the labelled segments of the videos in the publisher's standard folds.

    Parameters
    ----------
    data_folder : str or Path
        Contains Raw/ of CMU_MOSEI.zip, CMU_MOSEI_Labels.csd (HDF5: for each video, the times of its segments and seven
        numbers) and cmu_mosei_std_folds.py (three lists of videos; the file is parsed and never executed). Transcripts
        are lines video___number___start___end___text. Damaged lines, as in some releases, are skipped and counted in
        the log.

    Yields
    ------
    Clip
        A segment of a video, with its sentiment (negative below 0, positive above), its strongest emotion if one is
        stronger than all others, and the transcript that starts within 0.2 s of it. Videos that are in none of the
        publisher's folds are left out.

    Raises
    ------
    CorpusError
        A file is missing or not in its format, or h5py is not installed.
    """
    folder = Path(data_folder)
    require(folder, [_LABELS, _FOLDS, _AUDIO, _TEXT], "CMU-MOSEI", SOURCE)
    try:
        import h5py
    except ImportError as error:
        raise CorpusError(f"{folder / _LABELS} is an HDF5 file; install h5py to read it: pip install h5py") from error
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
    """Start and text of each segment of a video; empty for a video without transcript."""
    if not file.exists():
        return []
    texts, damaged = [], 0
    for _, line in read_lines(file, "utf-8-sig", "cp1252", "latin-1"):  # written on different systems
        try:
            _, _, start, _, text = line.split("___", 4)
            texts.append((float(start), text.strip()))
        except ValueError:
            damaged += 1
    if damaged:
        log.warning("%s: %d lines are not video___number___start___end___text and are skipped", file, damaged)
    return texts


def _text_at(start: float, texts: list[tuple[float, str]]) -> str | None:
    distance, text = min(((abs(begin - start), text) for begin, text in texts), default=(1.0, ""))
    return text if distance <= 0.2 and text else None


def _folds(file: Path) -> dict[str, str]:
    """Map videos to splits, from a Python file that assigns lists to names; it is parsed and never executed."""
    folds: dict[str, str] = {}
    lists = set()
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        name = getattr(statement.targets[0], "id", None) if isinstance(statement, ast.Assign) else None
        if name in _SPLITS:
            lists.add(name)
            folds |= dict.fromkeys(ast.literal_eval(statement.value), _SPLITS[name])
    if missing := set(_SPLITS) - lists:
        raise CorpusError(f"{file}: no list {', '.join(sorted(missing))}; download it again from {SOURCE}")
    return folds
