"""FSD50K (Fonseca et al. 2022, arXiv 2010.00475): 51,197 clips of Freesound, 200 classes of AudioSet's ontology."""

from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, Event, read_rows, require

SOURCE = "https://zenodo.org/records/4060432 (FSD50K.dev_audio, FSD50K.eval_audio, FSD50K.ground_truth)"
KEYS = {
    "data_folder": Key("Folder with FSD50K.ground_truth, FSD50K.dev_audio and FSD50K.eval_audio.", str, result=False),
}
_SPLITS = {"train": "train", "val": "valid"}


def read_fsd50k(data_folder: str | Path) -> Iterator[Clip]:
    """Read FSD50K.ground_truth/dev.csv (fname, labels, mids, split) and eval.csv (fname, labels, mids).

    Parameters
    ----------
    data_folder : str or Path
        Contains FSD50K.ground_truth/, FSD50K.dev_audio/ and FSD50K.eval_audio/, whose files are <fname>.wav.

    Yields
    ------
    Clip
        With its classes as events without times: the specific classes and all their ancestors in the ontology, as
        published. No uploader is in both dev and eval; some have clips in both train and val.

    Raises
    ------
    CorpusError
        A list or folder is missing, or a list is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("ground_truth", "dev_audio", "eval_audio"):
    ...     (folder / f"FSD50K.{name}").mkdir()
    >>> _ = (folder / "FSD50K.ground_truth/dev.csv").write_text('fname,labels,mids,split\\n64,"Dog,Animal",,val\\n')
    >>> _ = (folder / "FSD50K.ground_truth/eval.csv").write_text("fname,labels,mids\\n37,Rain,\\n")
    >>> [(clip.id, clip.split, [event.sound for event in clip.events]) for clip in read_fsd50k(folder)]
    [('64', 'valid', ['dog', 'animal']), ('37', 'test', ['rain'])]
    """
    folder = Path(data_folder)
    lists = [f"FSD50K.ground_truth/{part}.csv" for part in ("dev", "eval")]
    require(folder, [*lists, "FSD50K.dev_audio", "FSD50K.eval_audio"], "FSD50K", SOURCE)
    for part in ("dev", "eval"):
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        for row in read_rows(folder / f"FSD50K.ground_truth/{part}.csv", columns, SOURCE):
            yield Clip(
                dataset="FSD50K",
                id=row["fname"],
                audio=folder / f"FSD50K.{part}_audio" / f"{row['fname']}.wav",
                split=_SPLITS[row["split"]] if part == "dev" else "test",
                group=f"freesound {row['fname']}",
                events=tuple(Event(label.replace("_", " ").lower()) for label in row["labels"].split(",")),
            )
