"""Rows of several manifests that are chosen by task and split, as one sequence."""

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
    """Manifests, features and prompts that cannot be combined into a dataset."""


class SelectedRows(Sequence[dict[str, Any]]):
    """Some rows of several manifests: those of the first manifest come first, and each manifest's are in file order.

    Only the numbers of the rows are in memory, so this process and its DataLoader workers stay small.

    Parameters
    ----------
    tables : sequence of ManifestTable
        The manifests.
    row_numbers : sequence of ndarray
        For each manifest the numbers [N] int32 of its selected rows, ascending.
    questions : Questions, optional
        Supplies the instruction of rows that have none.

    Attributes
    ----------
    sizes : list of int
        Number of selected rows of each manifest.
    """

    def __init__(
        self, tables: Sequence[ManifestTable], row_numbers: Sequence[np.ndarray], questions: Questions | None = None
    ):
        self.tables, self.questions = list(tables), questions
        self.sizes = [len(numbers) for numbers in row_numbers]
        self._ends = list(accumulate(self.sizes))
        # A tensor: torch passes it to spawned workers in shared memory, where an array would be copied to each.
        self._numbers = torch.from_numpy(np.concatenate(row_numbers).astype(np.int32, copy=False))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        count = self._ends[-1]
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        index %= count
        manifest = bisect_right(self._ends, index)
        row = self.tables[manifest][int(self._numbers[index])]
        if row["instruction"] is None and self.questions is not None:
            row["instruction"] = self.questions.draw(manifest, row["id"])
        return row

    def draws(self, index: int) -> bool:
        """Whether a row draws its question in each epoch."""
        manifest = bisect_right(self._ends, index)
        return self.tables[manifest][int(self._numbers[index])]["instruction"] is None

    def manifest_of(self, index: int) -> Path:
        """Path of the manifest that contains a row."""
        return self.tables[bisect_right(self._ends, index)].path

    def by_table(self) -> Iterator[tuple[ManifestTable, np.ndarray]]:
        """Yield each manifest's table and the numbers [N] int32 of its selected rows."""
        return zip(self.tables, np.split(self._numbers.numpy(), self._ends[:-1]))

    def clips(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the manifest's path and the first clip, as {audio, start, duration, channel}, of each row."""
        for table, numbers in self.by_table():
            for audio, start, duration, channel in table.clips(numbers):
                yield table.path, {"audio": audio, "start": start, "duration": duration, "channel": channel}

    def tasks(self) -> set[str]:
        """Return the tasks that occur."""
        return {
            task
            for table, numbers in self.by_table()
            for task, _ in table.tasks_and_splits()
            if np.isin(table.select([task]), numbers).any()
        }

    def keep(self, mask: np.ndarray) -> "SelectedRows":
        """Return the rows for which the mask [N] is true."""
        masks = np.split(mask, self._ends[:-1])
        kept = [numbers[mask] for (_, numbers), mask in zip(self.by_table(), masks)]
        return SelectedRows(self.tables, kept, self.questions)


def select_rows(
    manifests: Sequence[str | Path],
    tasks: Sequence[str] | None = None,
    split: str | None = None,
    questions: Questions | None = None,
) -> SelectedRows:
    """Select rows of manifests by task and split.

    Parameters
    ----------
    manifests : sequence of path
        JSON-lines manifests; audio paths are relative to their folders.
    tasks : sequence of str, optional
        Only rows of these tasks; all if None.
    split : str, optional
        Only rows of this split; all if None.
    questions : Questions, optional
        Supplies the instruction of rows that have none. If None, every row needs its own instruction.

    Raises
    ------
    DatasetError
        No manifest is given, no row is selected, or a selected row has no instruction.
    ManifestError
        A manifest cannot be read or breaks the schema.

    Examples
    --------
    >>> from audiolm_lite.data.manifest import write_manifest
    >>> file = getfixture("tmp_path") / "test.jsonl"
    >>> row = {"audio": "a.wav", "instruction": "Describe it.", "target": "a dog", "dataset": "toy", "split": "test"}
    >>> write_manifest(file, [{**row, "id": task, "task": task} for task in ("asr", "caption")])
    2
    >>> [row["id"] for row in select_rows([file], tasks=["caption"], split="test")]
    ['caption']
    """
    if not manifests:
        raise DatasetError("dataset: the list of manifests is empty; name at least one file")
    tables = [ManifestTable(path) for path in manifests]
    rows = SelectedRows(tables, [table.select(tasks, split) for table in tables], questions)
    if questions is None:
        _require_instructions(rows)
    if len(rows) == 0:
        present = sorted(set().union(*(table.tasks_and_splits() for table in tables)))
        raise DatasetError(
            f"dataset: no row of {', '.join(map(str, manifests))} has tasks {tasks} and split {split}; "
            f"the manifests have these (task, split): {present}."
        )
    return rows


def _require_instructions(rows: SelectedRows) -> None:
    for table, numbers in rows.by_table():
        without = numbers[~table.column("questioned")[numbers]]
        if len(without):
            raise DatasetError(
                f"dataset: {len(without)} rows of {table.path} have no instruction, the first is "
                f'"{table[int(without[0])]["id"]}"; write one, or set question_files: a list of files with one '
                "question per line, or [] for the default question."
            )
