"""From several channels to one: a channel by its number, or the mean, with a warning where the mean loses sound."""

import warnings

import numpy as np

from audiolm_lite.audio.errors import AudioError, AudioSource, source_name

# Mean correlation of the channels below which they differ (two people, each with a microphone), and energy of the mean
# relative to that of the channels below which they cancel (one channel is inverted).
_DIFFERENT, _CANCELLED = 1 / 3, 0.1
# Energy per sample of 80 dB below full scale: of noise, nothing is said.
_SILENT = 1e-8


class ChannelWarning(UserWarning):
    """The mean of the channels of a file is not what one of them sounds like."""


class OneChannel:
    """Mono samples from blocks of several channels.

    Parameters
    ----------
    source : AudioSource
        The file, for messages.
    channels : int
        Its number of channels.
    channel : int, optional
        The one to take, counted from 0; None: the mean of all.

    Raises
    ------
    AudioError
        The file has no such channel.

    Examples
    --------
    >>> block = np.array([[0.5, 0.25], [0.0, -0.25]], dtype=np.float32)
    >>> OneChannel("a.wav", 2, channel=1)(block).tolist(), OneChannel("a.wav", 2)(block).tolist()
    ([0.25, -0.25], [0.375, -0.125])
    """

    def __init__(self, source: AudioSource, channels: int, channel: int | None = None):
        if channel is not None and not 0 <= channel < channels:
            has = "1 channel, which is 0" if channels == 1 else f"{channels} channels, 0 to {channels - 1}"
            raise AudioError(source, f"channel {channel}: it has {has}; correct the channel")
        self.source, self.channels, self.channel = source, channels, channel
        self._of_channels = self._of_mean = 0.0
        self._samples = 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return one channel [n] of a block [n, channels]."""
        if self.channel is not None:
            return samples[:, self.channel]
        mean = samples.mean(axis=1)
        if self.channels > 1:
            self._of_channels += float(np.vdot(samples, samples)) / self.channels
            self._of_mean += float(np.vdot(mean, mean))
            self._samples += len(mean)
        return mean

    def warn(self) -> None:
        """Warn if the channels of all blocks together cancel or differ, so that their mean loses or mixes sounds."""
        if self._of_channels <= _SILENT * self._samples:
            return
        kept = self._of_mean / self._of_channels
        correlation = (self.channels * kept - 1) / (self.channels - 1)
        if kept < _CANCELLED:
            fault = f"its channels cancel each other: their mean has {100 * kept:.0f} % of their energy"
        elif correlation < _DIFFERENT:
            fault = f"its channels differ (correlation {correlation:.2f}), and their mean mixes them"
        else:
            return
        remedy = f'choose one, channel=0 to {self.channels - 1} (in a manifest, the field "channel")'
        warnings.warn(f"{source_name(self.source)}: {fault}; {remedy}", ChannelWarning, stacklevel=4)
