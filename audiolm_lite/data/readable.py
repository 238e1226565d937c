"""Items of a dataset, or what is wrong with those whose audio cannot be read."""

from collections.abc import Mapping
from typing import NamedTuple

from torch.utils.data import Dataset

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.data.batching import Item
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.selected_rows import DatasetError


class Unreadable(NamedTuple):
    """An item whose audio cannot be read.

    Attributes
    ----------
    item : int
        Number of the item in its dataset; -1 for a row that the dataset has left out.
    id : str
        Of its row.
    audio : str
        The file.
    reason : str
        What is wrong, with the file and the row.
    """

    item: int
    id: str
    audio: str
    reason: str


class ReadableItems(Dataset):
    """The items of a dataset; in place of one whose audio cannot be read, an `Unreadable`.

    Parameters
    ----------
    dataset : AudioTextDataset
        The items.
    known : mapping
        Number -> item that is not tried again.
    """

    def __init__(self, dataset: AudioTextDataset, known: Mapping[int, Unreadable] | None = None):
        self.dataset, self.known = dataset, dict(known or {})

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | Unreadable:
        """Read an item."""
        if index in self.known:
            return self.known[index]
        try:
            return self.dataset[index]
        except (AudioError, DatasetError) as error:  # the second: its length has changed since the dataset was made
            row = self.dataset.rows[index]
            audio = error.path if isinstance(error, AudioError) else row["audio"]
            return Unreadable(index, row["id"], audio, str(error))
