"""Tables of names: every name is found, under a memory map as in memory, and unknown names are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.storage.name_table import NameTable, table_bytes

NAMES = st.lists(st.text(st.characters(codec=None), max_size=8), unique=True, max_size=30)


@given(names=NAMES, unknown=st.text(max_size=8))
def test_every_name_is_found(names, unknown):
    numbers = np.arange(2 * len(names)).reshape(-1, 2)
    table = NameTable(table_bytes(names, numbers, {"made": "now"}))
    assert sorted(table) == sorted(names) and len(table) == len(names) and table.metadata == {"made": "now"}
    assert [table.find(name) for name in names] == numbers.tolist()
    assert table.find_all(names, 1).tolist() == numbers[:, 1].tolist()
    if unknown not in names:
        assert table.find(unknown) is None and table.find_all([*names, unknown], 0).tolist()[-1] == -1


def test_a_file_gives_the_same_and_a_damaged_one_an_error(tmp_path):
    content = table_bytes(["a", "b"], np.array([[1], [2]]))
    (tmp_path / "table").write_bytes(content)
    assert NameTable.open(tmp_path / "table").find("b") == [2]
    for damaged in (b"", b"damaged", content[:-1], content[:20]):
        (tmp_path / "table").write_bytes(damaged)
        with pytest.raises((ValueError, KeyError)):
            NameTable.open(tmp_path / "table")
