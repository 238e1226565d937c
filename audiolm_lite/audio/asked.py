"""The audio of one call of `AudioLM`: which clips it is about, in which channels, and the shape of the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from audiolm_lite.audio.download import without_secrets
from audiolm_lite.audio.errors import AudioSource
from audiolm_lite.audio.inputs import FORMS, InputError, as_source, is_one_clip
from audiolm_lite.audio.reading import audio_header

Channel: TypeAlias = int | Literal["each"] | None
T = TypeVar("T")


@dataclass(frozen=True)
class AskedClip:
    """A clip in any form of `audio.inputs`, which becomes a source only when it is read.

    Attributes
    ----------
    audio : object
        The clip.
    sampling_rate : int or None
        Its rate in Hz, if it is an array without one.
    channel : int or None
        The channel to read; None: the mean of all.
    label : str or None
        Its name, if it has no path.
    """

    audio: Any
    sampling_rate: int | None = None
    channel: int | None = None
    label: str | None = None

    @property
    def source(self) -> AudioSource:
        """The clip as a source for `audio.reading`; a URL is downloaded again by each call."""
        return as_source(self.audio, self.sampling_rate)

    @property
    def name(self) -> str:
        """The clip in messages and as an id."""
        if self.label is not None:
            return self.label
        if isinstance(self.audio, str | Path):
            name = without_secrets(str(self.audio))
        else:
            own = getattr(self.audio, "name", None)
            name = own if isinstance(own, str) else "a waveform"
        return name if self.channel is None else f"{name}, channel {self.channel}"


class AskedAudio:
    """The clips of a call.

    Parameters
    ----------
    audio : object
        A clip in any form of `audio.inputs`, a tuple of clips in one question, or a sequence of these.
    sampling_rate : int, optional
        Rate of arrays without one, in Hz; None: 16000.
    channel : int or "each", optional
        The channel that is read of every clip, from 0; "each": every channel is a clip on its own; None: their mean.

    Attributes
    ----------
    groups : list of tuple of AskedClip
        The clips of each question.

    Raises
    ------
    InputError
        The channel is no number, or audio is neither a clip nor a sequence of clips.
    AudioError
        The number of channels of a file cannot be read ("each" only).

    Examples
    --------
    >>> import numpy as np
    >>> stereo = np.zeros((800, 2), np.float32)
    >>> [len(group) for group in AskedAudio(["a.wav", ("b.wav", "c.wav")]).groups]
    [1, 2]
    >>> each = AskedAudio([stereo, (stereo[:, 0], 8000)], channel="each")
    >>> each.repeat(["first", "second"]), each.shape(["left", "right", "mono"])
    (['first', 'first', 'second'], [['left', 'right'], ['mono']])
    """

    def __init__(self, audio: Any, sampling_rate: int | None = None, channel: Channel = None):
        whole = isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0
        if not whole and channel not in (None, "each"):
            raise InputError("audio", f'channel is {channel!r}; give a number from 0, "each", or None for the mean')
        self._single = is_one_clip(audio) or isinstance(audio, tuple)
        if not self._single and not hasattr(audio, "__iter__"):
            raise InputError("audio", f"{type(audio).__name__} is no form of audio; give {FORMS}")
        clips = [audio] if self._single else list(audio)
        self._each = channel == "each"
        self._counts = [1] * len(clips)
        if not isinstance(channel, str):
            self.groups = [self._group(clip, sampling_rate, channel) for clip in clips]
            return
        self.groups = []
        for number, clip in enumerate(clips):
            if not is_one_clip(clip):
                raise InputError("audio", 'channel="each" takes clips, not several clips in one question')
            source = as_source(clip, sampling_rate)
            self._counts[number] = audio_header(source)[2]
            self.groups += [(AskedClip(source, channel=index),) for index in range(self._counts[number])]

    @staticmethod
    def _group(clip: Any, sampling_rate: int | None, channel: int | None) -> tuple[AskedClip, ...]:
        several = isinstance(clip, tuple) and not is_one_clip(clip)
        parts = clip if several else (clip,)
        return tuple(part if isinstance(part, AskedClip) else AskedClip(part, sampling_rate, channel) for part in parts)

    def repeat(self, values: Sequence[T]) -> list[T]:
        """Return the value of each given clip for each of its groups."""
        return [value for value, count in zip(values, self._counts, strict=True) for _ in range(count)]

    @property
    def given(self) -> int:
        """Number of clips that were given."""
        return len(self._counts)

    def shape(self, answers: Sequence[T]) -> Any:
        """Return the answers of all groups as the clips were given: one, a list, or with "each" lists of channels."""
        rest = iter(answers)
        shaped: list[Any] = [[next(rest) for _ in range(count)] for count in self._counts]
        if not self._each:
            shaped = [answers[0] for answers in shaped]
        return shaped[0] if self._single else shaped
