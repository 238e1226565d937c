"""Answers of a model about audio files of any length and format, many at a time."""

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from audiolm_lite.audio.asked import Channel
from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.inputs import as_source
from audiolm_lite.audio.reading import SAMPLE_RATE, audio_header
from audiolm_lite.audio.windows import Window, audio_windows, window_limits
from audiolm_lite.decoding.recordings import Part, Recording, answer_recordings

if TYPE_CHECKING:
    from audiolm_lite.api import AudioLM


def answer_files(
    model: "AudioLM",
    files: Iterable[str],
    question: str,
    *,
    channel: Channel = None,
    transcript: bool = True,
    **generation: Any,
) -> Iterator[Recording]:
    """Ask a question about each file; windows of different files are answered together.

    Parameters
    ----------
    model : AudioLM
        Its `batch_size` is the number of windows that are answered together.
    files : iterable of str
        Paths or URLs, in any format that `audio.reading.read_audio` reads. A file that is longer than the model's
        encoder accepts is divided into windows at its quietest places (see `audio.windows`), and each is asked about.
    channel : int or "each", optional
        The channel that is read of each file, from 0. "each": every channel is a recording on its own, whose name ends
        with its number. None: the mean of all.
    question, transcript, **generation
        As in `AudioLM.ask`.

    Yields
    ------
    Recording
        In the order of the files, each as soon as it is answered. A file that cannot be read, or is too short, has an
        error instead of answers.

    Raises
    ------
    PromptError, GenerationError
        As in `AudioLM.ask`.
    """
    limits = window_limits(model.bundle.model.encoder)

    def windows_of(file: str, chosen: int | None) -> Iterator[Window]:
        yield from audio_windows(as_source(file), *limits, channel=chosen)

    def recordings() -> Iterator[tuple[str, Iterator[Window]]]:
        for file in files:
            if channel != "each":
                yield file, windows_of(file, channel)
                continue
            for number in range(_channels(file)):
                yield f"{file}, channel {number}", windows_of(file, number)

    def ask(windows: list[tuple[str, Window]]) -> list[Part]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the answer about a waveform repeated itself")
            clips = [window.samples for _, window in windows]
            texts = model.ask(clips, question, transcript=transcript, **generation)
        return [
            Part(window.start, len(window.samples) / SAMPLE_RATE, text, transcript, stopped)
            for (_, window), text, transcript, stopped in zip(windows, texts, model.transcripts, model.stopped)
        ]

    yield from answer_recordings(recordings(), ask, model.batch_size)


def _channels(file: str) -> int:
    """Number of channels of a file; 1 for one that cannot be read, which its windows will say."""
    try:
        return audio_header(as_source(file))[2]
    except AudioError:
        return 1
