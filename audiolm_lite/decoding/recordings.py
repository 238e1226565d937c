"""Answers about recordings of any length: their windows are answered in batches, and the answers are put together."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.windows import Window
from audiolm_lite.config.errors import UserError


@dataclass(frozen=True)
class Part:
    """The answer about a part of a recording.

    Attributes
    ----------
    start, seconds : float
        The part.
    text : str
        The answer.
    transcript : str or None
        Transcript that was part of the prompt.
    stopped : str or None
        What ended the answer, see `AudioLM.stopped`.
    """

    start: float
    seconds: float
    text: str
    transcript: str | None = None
    stopped: str | None = None


@dataclass
class Recording:
    """The answers about a recording.

    Attributes
    ----------
    audio : str
        Its path or name.
    parts : list of Part
        One per window.
    fault : ValueError or None
        Why there are none.
    fault_start : float or None
        Begin of the window with the fault in seconds; None: the file cannot be read.

    Examples
    --------
    >>> parts = [Part(0.0, 24.5, "good morning"), Part(24.5, 2.0, "thank you", stopped="limit")]
    >>> call = Recording("call.wav", parts)
    >>> call.text, call.stopped
    ('good morning thank you', 'limit')
    """

    audio: str
    parts: list[Part] = field(default_factory=list)
    fault: ValueError | None = None
    fault_start: float | None = None

    @property
    def text(self) -> str:
        """The answers, joined by spaces."""
        return " ".join(part.text for part in self.parts if part.text)

    @property
    def transcript(self) -> str | None:
        """The transcripts of the prompts, joined by spaces; None without them."""
        texts = [part.transcript for part in self.parts if part.transcript is not None]
        return " ".join(text for text in texts if text) if texts else None

    @property
    def stopped(self) -> str | None:
        """Reason "loop" or "limit" if that stopped the answer about any part; "silence" if all parts are silent."""
        reasons = [part.stopped for part in self.parts]
        silent = "silence" if reasons and all(reason == "silence" for reason in reasons) else None
        return next((reason for reason in ("loop", "limit") if reason in reasons), silent)

    @property
    def error(self) -> str | None:
        """Why there are no answers, in words."""
        if isinstance(self.fault, AudioError):
            return self.fault.reason
        return None if self.fault is None else f"at {self.fault_start:.1f} s: {self.fault}"


def answer_recordings(
    recordings: Iterable[tuple[str, Iterable[Window]]],
    ask: Callable[[list[tuple[str, Window]]], list[Part]],
    batch_size: int,
) -> Iterator[Recording]:
    """Answer about the windows of recordings; those of different recordings are answered together.

    Parameters
    ----------
    recordings : iterable of (str, iterable of Window)
        Name and windows of each, read one by one: memory holds `batch_size` windows, whatever their number.
    ask : callable
        Answers about a batch of windows, each with the name of its recording.
    batch_size : int
        Number of windows that are answered together.

    Yields
    ------
    Recording
        In the order of the recordings, each as soon as it is answered. One whose windows raise AudioError, or that the
        model refuses with a ValueError, has that fault instead of answers; a UserError ends all.

    Examples
    --------
    >>> from torch import zeros
    >>> calls = [("a.wav", [Window(0.0, zeros(16000)), Window(1.0, zeros(8000))]), ("b.wav", [Window(0.0, zeros(800))])]
    >>> ask = lambda windows: [Part(w.start, len(w.samples) / 16000, f"{len(w.samples)}") for _, w in windows]
    >>> [(call.audio, call.text) for call in answer_recordings(calls, ask, batch_size=2)]
    [('a.wav', '16000 8000'), ('b.wav', '800')]
    """
    unfinished: deque[Recording] = deque()
    batch: list[tuple[Recording, Window]] = []
    for name, windows in recordings:
        recording = Recording(name)
        unfinished.append(recording)
        try:
            for window in windows:
                batch.append((recording, window))
                if len(batch) == batch_size:
                    _answer(batch, ask)
                    batch = []
        except AudioError as error:
            recording.fault = error
            batch = [(other, window) for other, window in batch if other is not recording]
        while unfinished and all(other is not unfinished[0] for other, _ in batch):
            yield unfinished.popleft()
    _answer(batch, ask)
    yield from unfinished


def _answer(batch: list[tuple[Recording, Window]], ask: Callable[[list[tuple[str, Window]]], list[Part]]) -> None:
    """Add the answers about windows to their recordings; one that the model refuses is a fault of its own only."""
    if not batch:
        return
    try:
        for (recording, _), part in zip(batch, ask([(recording.audio, window) for recording, window in batch])):
            recording.parts.append(part)
    except UserError:  # of the question or the options, not of a window
        raise
    except ValueError as error:
        if len(batch) > 1:
            for entry in batch:
                _answer([entry], ask)
            return
        recording, window = batch[0]
        recording.fault, recording.fault_start = error, window.start
