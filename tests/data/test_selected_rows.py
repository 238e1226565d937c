"""Selected rows of several manifests as one sequence, also in DataLoader workers."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import SelectedRows

ROW = {"audio": "a.wav", "task": "asr", "target": "yes", "dataset": "toy", "split": "train"}


@pytest.fixture
def tables(tmp_path):
    for name, count in (("a", 5), ("b", 1), ("c", 4)):
        rows = ({"id": f"{name}{i}", "instruction": None if i % 2 else "own", **ROW} for i in range(count))
        write_manifest(tmp_path / f"{name}.jsonl", rows, instruction_required=False)
    (tmp_path / "c.txt").write_text("from c\n")
    return [ManifestTable(tmp_path / f"{name}.jsonl") for name in "abc"]


def test_rows_are_the_selected_ones_of_each_table_in_order(tables, tmp_path):
    numbers = [np.array([0, 1, 3], np.int32), np.array([], np.int32), np.array([1, 2], np.int32)]
    rows = SelectedRows(tables, numbers, Questions([tmp_path / "c.txt"] * 3, 3))
    assert [row["id"] for row in rows] == ["a0", "a1", "a3", "c1", "c2"] and rows.sizes == [3, 0, 2]
    assert [row["instruction"] for row in rows] == ["own", "from c", "from c", "from c", "own"]
    assert rows[-1]["id"] == "c2" and [rows.manifest_of(index) for index in (2, 3)] == [tables[0].path, tables[2].path]
    assert [row["id"] for row in rows.keep(np.array([0, 1, 0, 0, 1], bool))] == ["a1", "c2"]
    with pytest.raises(IndexError):
        rows[5]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_rows(tables, method):
    rows = SelectedRows(tables, [np.arange(len(table), dtype=np.int32) for table in tables])
    loader = DataLoader(rows, batch_size=4, collate_fn=list, num_workers=1, multiprocessing_context=method)
    assert [row for batch in loader for row in batch] == list(rows)
