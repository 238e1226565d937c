"""Memory of this process: what it needs for itself, apart from the pages of files that it maps.

The resident memory of a process (RSS) also counts pages of mapped files: libraries, feature stores, and weights that
are used in place. The kernel drops them when memory is short, and processes share them, so a sum over everything says
little about the memory that a job needs. Both parts are therefore given apart.
"""

import re
import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
# What `PeakMemory.peak` counts: anonymous and shared memory (RssAnon + RssShmem), or all of RSS without /proc.
KIND = "process_without_mapped_files" if STATUS.exists() else "process_rss"


def process_memory() -> tuple[int, int]:
    """Return the bytes of anonymous and shared memory in use, and of resident pages of mapped files.

    Without /proc (macOS, Windows) the first is all resident memory, and the second 0.

    Examples
    --------
    >>> own, mapped = process_memory()
    >>> own > 1_000_000, mapped >= 0
    (True, True)
    """
    if not STATUS.exists():
        import psutil

        return psutil.Process().memory_info().rss, 0
    text = STATUS.read_text(encoding="utf-8")
    anonymous, file, shared = (
        1024 * int(size) for size in re.findall(r"^Rss(?:Anon|File|Shmem):\s+(\d+) kB", text, re.MULTILINE)
    )
    return anonymous + shared, file


class PeakMemory:
    """Samples `process_memory` in a thread, as a context: the kernel keeps a maximum for all resident memory only.

    Parameters
    ----------
    interval : float
        Seconds between samples; one takes 0.05 ms.

    Attributes
    ----------
    before, peak : int
        Bytes without mapped files: at the start, and the maximum so far.
    mapped : int
        Maximum so far of the resident pages of mapped files, bytes.

    Examples
    --------
    >>> with PeakMemory(interval=0.001) as memory:
    ...     data = b"1" * 50_000_000
    >>> memory.peak > memory.before + 40_000_000
    True
    """

    def __init__(self, interval: float):
        self.interval = interval
        self.before, self.mapped = process_memory()
        self.peak = self.before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Start to sample."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the last sample and end the thread."""
        self._ended.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        own, mapped = process_memory()
        self.peak, self.mapped = max(self.peak, own), max(self.mapped, mapped)
