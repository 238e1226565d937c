"""Filters: limits on duration, text length, silence and duplicates, with a reason for every clip they leave out."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from audiolm_lite.config.errors import ConfigError, did_you_mean

FRAME_SECONDS = 0.02
# A frame is silent if its level is below the first limit, relative to the clip's loudest frame, or below the second,
# relative to full scale.
SILENT_BELOW_LOUDEST_DB = -40.0
SILENT_BELOW_FULL_SCALE_DB = -60.0


class Dropped(Exception):
    """A clip that a filter leaves out.

    Attributes
    ----------
    filter : str
        Name of the filter.
    reason : str
        The clip's value and the limit.
    """

    def __init__(self, filter: str, reason: str):
        super().__init__(filter, reason)
        self.filter, self.reason = filter, reason


@dataclass(frozen=True)
class Filters:
    """The block `filters` of a prepare.yaml; by default there are no limits.

    Attributes
    ----------
    min_seconds, max_seconds : float, optional
        Shortest and longest duration kept, both inclusive, in seconds.
    max_characters : int, optional
        Longest transcript or other target kept, in characters after normalisation.
    max_silence : float, optional
        Largest share (0 to 1) of silent frames kept, see `silence_share`. Needs decoded audio.
    duplicates : {"keep", "drop"}
        "drop" keeps only the first of the clips with the same audio bytes, segment and transcript.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    max_characters: int | None = None
    max_silence: float | None = None
    duplicates: str = "keep"

    @classmethod
    def from_config(cls, block: dict[str, Any] | None) -> "Filters":
        """Check the YAML block; raises ConfigError, which names an entry that is unknown or has an invalid value."""
        known = [field.name for field in fields(cls)]
        for name, value in (block or {}).items():
            if name not in known:
                raise ConfigError(f"filters: unknown entry {name!r}{did_you_mean(name, known)}")
            number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if name == "duplicates":
                if value not in ("keep", "drop"):
                    raise ConfigError(f"filters: duplicates is {value!r}; choose keep or drop")
            elif value is not None and not (number and (name != "max_silence" or value <= 1)):
                limits = "a share from 0 to 1" if name == "max_silence" else "a number >= 0"
                raise ConfigError(f"filters: {name} is {value!r}; write {limits}, or null for no limit")
        limits = cls(**(block or {}))
        least, most = limits.min_seconds, limits.max_seconds
        if least is not None and most is not None and least > most:
            raise ConfigError(f"filters: min_seconds {least} is above max_seconds {most}; correct one of them")
        return limits

    def check_seconds(self, seconds: float) -> None:
        """Raise Dropped for a clip that is too short or too long."""
        if self.min_seconds is not None and seconds < self.min_seconds:
            raise Dropped("min_seconds", f"shorter than min_seconds: {seconds:g} s, at least {self.min_seconds:g} s")
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise Dropped("max_seconds", f"longer than max_seconds: {seconds:g} s, at most {self.max_seconds:g} s")

    def check_characters(self, text: str) -> None:
        """Raise Dropped for a text that is too long."""
        if self.max_characters is not None and len(text) > self.max_characters:
            raise Dropped(
                "max_characters", f"text longer than max_characters: {len(text)}, at most {self.max_characters}"
            )

    def check_silence(self, share: float) -> None:
        """Raise Dropped for a clip with too large a share of silence."""
        if self.max_silence is not None and share > self.max_silence:
            raise Dropped("max_silence", f"more silence than max_silence: {share:.3f}, at most {self.max_silence:g}")


def frame_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Root mean square [frames] of each 20 ms of samples [S] at `rate` Hz; the last frame may be shorter.

    Examples
    --------
    >>> frame_levels(np.array([0.1, -0.1, 0.3, 0.3, 0.0]), rate=100)
    array([0.1, 0.3, 0. ])
    """
    starts = np.arange(0, len(samples), max(1, round(FRAME_SECONDS * rate)))
    squares = np.add.reduceat(samples.astype(np.float64) ** 2, starts)
    return np.sqrt(squares / np.diff(starts, append=len(samples)))


def silence_share(levels: np.ndarray) -> float:
    """Share (0 to 1) of silent frames, from the levels [frames] of a clip.

    A frame is silent if it is more than 40 dB below the clip's loudest frame (so a quiet recording is not silence), or
    below -60 dB of full scale (so the noise of the recorder is silence).

    Examples
    --------
    >>> silence_share(np.array([0.5, 0.4, 0.001, 0.0]))
    0.5
    """
    threshold = max(10 ** (SILENT_BELOW_FULL_SCALE_DB / 20), levels.max() * 10 ** (SILENT_BELOW_LOUDEST_DB / 20))
    return float((levels < threshold).mean())
