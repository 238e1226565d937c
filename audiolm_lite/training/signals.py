"""Signals that end a run cleanly: from a cluster's scheduler when the time is up, or from the user."""

import signal
import threading
from types import FrameType
from typing import Any

# Exit status of a run that has saved and stopped: EX_TEMPFAIL of sysexits.h. The same command continues the run.
STOPPED = 75


class Stopped(SystemExit):
    """The run has received a signal and saved a checkpoint; the process exits with status 75."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignals:
    """While active, SIGTERM and SIGUSR1 request a stop between two steps and do not end the process at once.

    On Windows, which has no SIGUSR1, Ctrl+Break (SIGBREAK) does.

    Attributes
    ----------
    requested : str
        Name of the signal that was received; empty if none was.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name))

    def __init__(self) -> None:
        self.requested = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers; only the main thread can, and only it needs to."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers that were installed before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
