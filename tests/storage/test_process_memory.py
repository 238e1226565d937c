"""Memory of the process: its own is counted, pages of mapped files are counted apart."""

import mmap
import time

import pytest

from audiolm_lite.storage.process_memory import STATUS, PeakMemory, process_memory

SIZE = 60_000_000


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells mapped files apart")
def test_pages_of_mapped_files_are_counted_apart(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(SIZE))
    with PeakMemory(interval=0.002) as memory, file.open("rb") as stream:
        before = process_memory()
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        assert sum(mapped[::4096]) == 0  # reads every page
        after = process_memory()
        assert after[1] - before[1] > 0.9 * SIZE and after[0] - before[0] < 0.2 * SIZE
        mapped.close()
    assert memory.peak < memory.before + 0.2 * SIZE and memory.mapped > before[1] + 0.9 * SIZE


def test_memory_that_is_freed_again_is_part_of_the_peak():
    with PeakMemory(interval=0.001) as memory:
        data = b"1" * SIZE
        time.sleep(0.05)
        del data
    assert memory.peak > memory.before + 0.9 * SIZE > process_memory()[0]
