"""Atomic writes: complete or not at all, whatever interrupts them."""

import json
import os
import subprocess
import sys

import pytest

from audiolm_lite.storage.atomic import atomic_folder, atomic_path, write_bytes, write_json, write_text


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_appears_complete_in_a_folder_made_for_it(tmp_path, sync):
    write_bytes(tmp_path / "new" / "file", b"\x00\r\n", sync=sync)
    assert (tmp_path / "new" / "file").read_bytes() == b"\x00\r\n"
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "file", "old")
    with pytest.raises(error), atomic_path(tmp_path / "file") as unfinished:
        unfinished.write_text("new")
        raise error
    assert (tmp_path / "file").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_json_that_cannot_be_written_changes_nothing(tmp_path):
    write_json(tmp_path / "file.json", {"é": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"é": 1}


def test_a_killed_process_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file", "old")
    code = (
        "import os, sys\nfrom audiolm_lite.storage.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as unfinished:\n"
        "    unfinished.write_text('new')\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")]).returncode == 9
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").write_text("1")
        raise ValueError
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "model") as unfinished:
        (unfinished / "a").write_text("1")
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model" / "a").read_text() == "1"
    with pytest.raises(FileExistsError, match="choose another name"), atomic_folder(tmp_path / "model"):
        pass
