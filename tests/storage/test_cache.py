"""Files derived from others: made once, again when invalid, and without leftovers of killed processes."""

import pytest

from audiolm_lite.storage.cache import derived_file


@pytest.fixture
def derive(tmp_path):
    made = []

    def derive():
        def make(path):
            made.append(path)
            path.write_text("valid")

        file = derived_file(tmp_path / "a", ".x", lambda path: path.is_file() and path.read_text() == "valid", make)
        return file, len(made)

    return derive


def test_a_derived_file_is_made_once_and_again_when_it_is_damaged(derive, tmp_path):
    assert derive() == derive() == (tmp_path / ".a.x", 1)
    (tmp_path / ".a.x").write_text("damaged")
    assert derive() == (tmp_path / ".a.x", 2)


def test_temporary_files_of_killed_processes_are_deleted(derive, tmp_path):
    (tmp_path / "..a.x.4711.tmp").write_text("half of i")
    derive()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.x", ".a.x.lock"]
