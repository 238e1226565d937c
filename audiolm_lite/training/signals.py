"""Ending a run early and cleanly, when a cluster's time is up or a user asks for it."""

import signal
import threading
from types import FrameType

# What a shell sees of a run that saved and stopped: EX_TEMPFAIL, "try again later". The same command goes on.
STOPPED = 75


class Stopped(SystemExit):
    """The run was asked to stop, has saved, and exits with code 75."""

    def __init__(self):
        super().__init__(STOPPED)


class StopSignals:
    """While active, SIGTERM and SIGUSR1 ask for a stop between two steps in place of ending the process at once.

    Attributes
    ----------
    requested : str
        Name of the signal that came; empty where none did.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.requested = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        """Take over the signals; other threads than the main one may not, and need not."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
