"""Rows of several manifests that a dataset has chosen, as one sequence."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_lite.config.errors import UserError
from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.data.questions import Questions


class DatasetError(UserError, ValueError):
    """Manifests, features and prompts that do not make a dataset together."""


class Rows(Sequence):
    """Chosen rows of some tables: those of the first table come first, each one's in file order.

    Parameters
    ----------
    tables : sequence of ManifestTable
    chosen : sequence of ndarray
        For each table the numbers [N] int32 of its rows, ascending.
    questions : Questions, optional
        What fills the instruction where a row has none.

    Attributes
    ----------
    sizes : list of int
        How many rows each table has here.
    """

    def __init__(self, tables: Sequence[ManifestTable], chosen: Sequence[np.ndarray], questions: Questions | None):
        self.tables, self.questions = list(tables), questions
        self.sizes = [len(numbers) for numbers in chosen]
        self._ends = list(accumulate(self.sizes))
        # A tensor: torch hands it to spawned workers through shared memory, where an array would be copied to each.
        self._numbers = torch.from_numpy(np.concatenate(chosen).astype(np.int32, copy=False))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = self._ends[-1]
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        index %= count
        row = self.table_of(index)[self._numbers[index].item()]
        if row["instruction"] is None and self.questions is not None:
            row["instruction"] = self.questions.draw(bisect_right(self._ends, index), row["id"])
        return row

    def table_of(self, index: int) -> ManifestTable:
        """Table that a row is from."""
        return self.tables[bisect_right(self._ends, index)]

    def chosen(self) -> Iterator[tuple[ManifestTable, np.ndarray]]:
        """Each table and the numbers of its rows."""
        return zip(self.tables, np.split(self._numbers.numpy(), self._ends[:-1]))

    def keep(self, mask: np.ndarray) -> "Rows":
        """The rows where the mask [N] is true."""
        masks = np.split(mask, self._ends[:-1])
        return Rows(self.tables, [numbers[m] for (_, numbers), m in zip(self.chosen(), masks)], self.questions)

    def require_distinct_files(self, store: Path) -> None:
        """Raise DatasetError where manifests in several folders name different files by one key of the store."""
        if len({table.path.parent for table in self.tables}) == 1:
            return
        relative: dict[Path, np.ndarray] = {}  # folder -> hashes of audio paths that start from it
        for table in self.tables:
            hashes = np.unique(np.fromiter((hash(name) for name in _relative_audio(table)), np.int64))
            folder = table.path.parent
            for other, seen in relative.items():
                shared = set(np.intersect1d(hashes, seen).tolist()) if other != folder else ()
                if shared:
                    name = next(name for name in _relative_audio(table) if hash(name) in shared)
                    raise DatasetError(
                        f"dataset: {folder / name} and {other / name} share one key in {store}; put the manifests in "
                        "one folder above their audio, so that their audio paths differ."
                    )
            relative[folder] = np.union1d(hashes, relative.get(folder, hashes))


def _relative_audio(table: ManifestTable) -> Iterator[str]:
    clips = table.clips(np.arange(len(table), dtype=np.int32))
    return (audio for audio, _, _ in clips if not audio.startswith("/"))
