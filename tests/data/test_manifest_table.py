"""The memory-mapped table: equal to the manifest, refreshed with it, built once, shared by processes."""

import errno
import json
import logging
import multiprocessing
import os
import pathlib
import pickle

import filelock
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.data import manifest_table as table_module
from audiolm_lite.data.manifest import ManifestError, iterate_lines, read_manifest, write_manifest
from audiolm_lite.data.manifest_table import ManifestTable, content_hash

text = st.text(st.characters(codec="utf-8"), max_size=12)
filled = text.filter(str.strip)
seconds = st.floats(0.001, 1e6) | st.integers(1, 10**6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {
        "audio": filled.filter(lambda path: "\0" not in path),
        "task": filled,
        "instruction": text | st.none(),
        "target": text,
        "dataset": filled,
        "split": filled,
    },
    optional={
        "start": seconds,
        "duration": seconds | st.none(),
        "references": st.lists(text, min_size=1, max_size=3),
        "language": text,
        "speaker": text,
        "begin": values,  # also the name of a column of the table
        "words": values,
        "label": values,
    },
)


def row(name, **change):
    fixed = {"audio": "a.wav", "task": "asr", "instruction": "?", "target": "yes", "dataset": "toy", "split": "train"}
    return {"id": str(name), **fixed, **change}


@given(written=st.lists(rows, min_size=1, max_size=8), batch=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_rows_equal_those_of_the_manifest(tmp_path_factory, written, batch):
    file = tmp_path_factory.mktemp("table") / "m.jsonl"
    write_manifest(file, ({"id": str(i), **row} for i, row in enumerate(written)), instruction_required=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "_BATCH_ROWS", batch)
        table = ManifestTable(file)
        odd = np.arange(1, len(written), 2)
        clips, every = list(table.clips(odd)), list(table.clips(np.arange(len(written))))
    expected = read_manifest(file, instruction_required=False)
    assert list(table) == expected and len(table) == len(expected)
    assert [table[i - len(table)] for i in range(len(table))] == expected
    copied = pickle.loads(pickle.dumps(table))
    assert list(copied) == expected
    assert (
        every == [(r["audio"], r["start"], r["duration"], r.get("channel")) for r in expected] and clips == every[1::2]
    )
    stored = pa.ipc.open_file(pa.memory_map(str(table.file))).read_all()  # as another program reads it
    assert stored.column("audio").to_pylist() == [r["audio"] for r in expected]
    assert table.column("questioned").tolist() == [r["instruction"] is not None for r in expected]
    for tasks, split in (({r["task"] for r in expected[:2]}, None), (None, "train"), ({"x"}, "y")):
        numbers = table.select(tasks and sorted(tasks), split)
        kept = [r for r in expected if (tasks is None or r["task"] in tasks) and split in (None, r["split"])]
        assert [table[int(i)] for i in numbers] == kept
    assert table.tasks_and_splits() == {(r["task"], r["split"]) for r in expected}
    with pytest.raises(IndexError):
        table[len(table)]


def test_the_table_is_built_once_and_again_when_the_manifest_changes(tmp_path, monkeypatch):
    file, builds = tmp_path / "m.jsonl", []
    write = table_module._write
    monkeypatch.setattr(table_module, "_write", lambda *names: builds.append(names) or write(*names))
    write_manifest(file, [row("a"), row("b")])
    first = ManifestTable(file)
    assert ManifestTable(file)[1]["id"] == "b" and len(builds) == 1
    assert first.file == tmp_path / ".m.jsonl.arrow"

    status = file.stat()
    write_manifest(file, [row("a"), row("c")])  # same size, with the time set back: detected by the ends
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ManifestTable(file)[1]["id"] == "c" and len(builds) == 2
    assert first[1]["id"] == "b"  # the open manifest is unchanged
    with pytest.raises(ManifestError, match="has changed since it was opened"):
        pickle.loads(pickle.dumps(first))
    assert first.select(["asr"]).tolist() == [0, 1]
    write_manifest(file, [row("a")])
    assert len(ManifestTable(file)) == 1 and len(builds) == 3


def test_a_row_that_was_overwritten_in_place_is_detected(tmp_path):
    """Offsets are those of the earlier file: the bytes there could now be parts of two other rows."""
    file = tmp_path / "m.jsonl"
    write_manifest(file, [row("a"), row("b")])
    table = ManifestTable(file)
    with file.open("r+b") as out:
        out.write(file.read_bytes().replace(b'"b"', b'"c"'))
    assert table[0]["id"] == "a"
    with pytest.raises(ManifestError, match="has changed since it was opened"):
        table[1]
    file.write_bytes(b"")
    with pytest.raises(ManifestError, match="has changed since it was opened"):
        table[0]


def test_byte_order_marks_blank_lines_and_crlf_are_skipped(tmp_path):
    lines = [json.dumps(row(name)).encode() for name in "abc"]
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf%s\r\n\r\n  \n\xef\xbb\xbf%s\n%s" % tuple(lines))
    table = ManifestTable(tmp_path / "m.jsonl")
    assert list(table) == read_manifest(tmp_path / "m.jsonl") and [r["id"] for r in table] == ["a", "b", "c"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_table_is_built_again(tmp_path, damage):
    write_manifest(tmp_path / "m.jsonl", [row("a")])
    table = ManifestTable(tmp_path / "m.jsonl")
    table.file.write_bytes(damage(table.file.read_bytes()))
    assert ManifestTable(tmp_path / "m.jsonl")[0]["id"] == "a"


def test_errors_are_found_when_the_table_is_built_and_leave_no_file(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps(row("a")) + "\n" + json.dumps(row("b", start=-1)) + "\n")
    with pytest.raises(ManifestError, match='m.jsonl, line 2, field "start": -1'):
        ManifestTable(file)
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith((".arrow", ".tmp"))]
    with pytest.raises(ManifestError, match="no such manifest"):
        ManifestTable(tmp_path / "none.jsonl")


def test_a_manifest_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "m.jsonl"
    write_manifest(file, [row("a")])

    def growing(path, **options):
        yield from iterate_lines(path, **options)
        with file.open("a") as out:
            out.write(json.dumps(row("b")) + "\n")

    monkeypatch.setattr(table_module, "iterate_lines", growing)
    with pytest.raises(ManifestError, match="changed while it was read"):
        ManifestTable(file)


@pytest.mark.parametrize("by", ["lock", "folder"])
def test_the_table_of_a_folder_that_is_not_writable_is_in_the_cache(tmp_path, monkeypatch, caplog, by):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "data" / "m.jsonl"
    write_manifest(file, [row("a")])
    if by == "folder":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "data").chmod(0o555)
    else:
        acquire = filelock.FileLock.acquire

        def refuse(self, *args, **options):
            if pathlib.Path(self.lock_file).parent == file.parent:
                raise OSError(errno.EROFS, "Read-only file system")
            return acquire(self, *args, **options)

        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with caplog.at_level(logging.WARNING):
        table = ManifestTable(file)
    assert table[0]["id"] == "a" and tmp_path / "cache" in table.file.parents
    assert "cannot be written" in caplog.text and str(table.file) in caplog.text
    caplog.clear()
    assert ManifestTable(file).file == table.file and not caplog.text
    (tmp_path / "data").chmod(0o755)


def build_and_read(path, start, results):
    start.wait()
    results.put([row["id"] for row in ManifestTable(path)])


def test_processes_that_build_at_the_same_time_all_get_the_complete_table(tmp_path):
    file = tmp_path / "m.jsonl"
    write_manifest(file, (row(i) for i in range(3000)))
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=build_and_read, args=(file, start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    assert all(results.get(timeout=60) == [str(i) for i in range(3000)] for _ in workers)
    for worker in workers:
        worker.join()
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_hash_of_a_manifest_is_read_from_its_table(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [row("a")])
    without_table = content_hash(path)
    assert ManifestTable(path).content == without_table
    with monkeypatch.context() as unread:
        unread.setattr(table_module, "_hash", None)
        assert content_hash(path) == without_table
    write_manifest(path, [row("b")])
    assert content_hash(path) != without_table
