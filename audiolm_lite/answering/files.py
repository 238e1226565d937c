"""Answers of a model about audio files of any length and format, many at a time."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.audio.windows import Window, audio_windows
from audiolm_lite.config.errors import UserError

if TYPE_CHECKING:
    from audiolm_lite.api import AudioLM

# Longest part of a recording that is answered at once, in seconds. Whisper accepts 30, but few models are trained on
# clips of that length.
LONGEST = 25.0


@dataclass(frozen=True)
class Part:
    """The answer about a window of a recording.

    Attributes
    ----------
    start, seconds : float
        The window.
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
    transcript: str | None
    stopped: str | None


@dataclass
class FileAnswer:
    """The answers about a file.

    Attributes
    ----------
    audio : str
        Path of the file.
    parts : list of Part
        One per window.
    error : str or None
        Why there are none.

    Examples
    --------
    >>> parts = [Part(0.0, 24.5, "good morning", None, None), Part(24.5, 2.0, "thank you", None, None)]
    >>> FileAnswer("call.wav", parts).text
    'good morning thank you'
    """

    audio: str
    parts: list[Part] = field(default_factory=list)
    error: str | None = None

    @property
    def text(self) -> str:
        """The answers, joined by spaces."""
        return " ".join(part.text for part in self.parts if part.text)


def answer_files(
    model: "AudioLM", files: Iterable[str], question: str, *, transcript: bool = True, **generation: Any
) -> Iterator[FileAnswer]:
    """Ask a question about each file; windows of different files are answered together.

    Parameters
    ----------
    model : AudioLM
        Its `batch_size` is the number of windows that are answered together.
    files : iterable of str
        In any format that `audio.reading.read_audio` reads. A file that is longer than `LONGEST`, or than the model's
        encoder accepts, is divided into windows at its quietest places (see `audio.windows`), and each is asked about.
    question, transcript, **generation
        As in `AudioLM.ask`.

    Yields
    ------
    FileAnswer
        In the order of the files, each as soon as it is answered. A file that cannot be read, or is too short, has an
        error instead of answers.

    Raises
    ------
    PromptError, GenerationError
        As in `AudioLM.ask`.

    Examples
    --------
    >>> for answer in answer_files(model, ["a.wav", "talk.mp3"], "Transcribe the speech."):  # doctest: +SKIP
    ...     print(answer.audio, answer.text)
    """
    encoder: Any = model.bundle.model.encoder
    longest = min(LONGEST, getattr(encoder, "max_seconds", LONGEST))

    def ask(windows: list[Window]) -> list[Part]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the answer about a waveform repeated itself")
            clips = [window.samples for window in windows]
            texts = model.ask(clips, question, transcript=transcript, **generation)
        return [
            Part(window.start, len(window.samples) / SAMPLE_RATE, text, transcript, stopped)
            for window, text, transcript, stopped in zip(windows, texts, model.transcripts, model.stopped)
        ]

    open_files: deque[FileAnswer] = deque()
    batch: list[tuple[FileAnswer, Window]] = []
    for name in files:
        file = FileAnswer(name)
        open_files.append(file)
        try:
            for window in audio_windows(name, longest):
                batch.append((file, window))
                if len(batch) == model.batch_size:
                    _answer(batch, ask)
                    batch = []
        except AudioError as error:
            file.error = error.reason
            batch = [(other, window) for other, window in batch if other is not file]
        while open_files and all(other is not open_files[0] for other, _ in batch):
            yield open_files.popleft()
    _answer(batch, ask)
    yield from open_files


def _answer(batch: list[tuple[FileAnswer, Window]], ask: Callable[[list[Window]], list[Part]]) -> None:
    """Add the answers about windows to their files; one that the model refuses is an error of its own file only."""
    if not batch:
        return
    try:
        for (file, _), part in zip(batch, ask([window for _, window in batch])):
            file.parts.append(part)
    except UserError:  # of the question or the options, not of a window
        raise
    except ValueError as error:
        if len(batch) > 1:
            for entry in batch:
                _answer([entry], ask)
            return
        batch[0][0].error = f"at {batch[0][1].start:.1f} s: {error}"
