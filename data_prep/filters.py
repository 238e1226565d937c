"""Filters: which sound clips a training set leaves out on purpose, and why, in words."""

import difflib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from audiolm_lite.config.errors import ConfigError

FRAME_SECONDS = 0.02
# A frame is silent if it is this far below the clip's loudest frame, or below this level of full scale.
SILENT_BELOW_LOUDEST_DB = -40.0
SILENT_BELOW_FULL_SCALE_DB = -60.0


class Dropped(Exception):
    """A clip that a filter leaves out.

    Attributes
    ----------
    filter : str
        Name of the filter.
    reason : str
        What the clip has and what the filter allows.
    """

    def __init__(self, filter: str, reason: str):
        super().__init__(filter, reason)
        self.filter, self.reason = filter, reason


@dataclass(frozen=True)
class Filters:
    """The block `filters` of a prepare.yaml; every limit is off unless it is set.

    Attributes
    ----------
    min_seconds, max_seconds : float, optional
        Shortest and longest clip kept, both included, in seconds.
    max_characters : int, optional
        Longest transcript or other answer kept, in characters after normalisation.
    max_silence : float, optional
        Largest share (0 to 1) of silent frames kept, see `silence_share`. The audio is decoded for it.
    duplicates : {"keep", "drop"}
        "drop" keeps the first of all clips that have the same audio bytes, segment and transcript.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    max_characters: int | None = None
    max_silence: float | None = None
    duplicates: str = "keep"

    @classmethod
    def from_config(cls, block: dict[str, Any] | None) -> "Filters":
        """Check the YAML block; raises ConfigError naming an entry that is unknown or has an impossible value."""
        known = [field.name for field in fields(cls)]
        for name, value in (block or {}).items():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                meant = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
                raise ConfigError(f"filters: unknown entry {name!r}; {meant}")
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
            raise ConfigError(f"filters: min_seconds {least} is above max_seconds {most}; no clip would pass")
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
        """Raise Dropped for a clip that is silent too much of its time."""
        if self.max_silence is not None and share > self.max_silence:
            raise Dropped("max_silence", f"more silence than max_silence: {share:.3f}, at most {self.max_silence:g}")


def frame_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Levels [frames] of samples [S] at `rate` Hz: the root mean square of each 20 ms, the last frame maybe shorter."""
    starts = np.arange(0, len(samples), max(1, round(FRAME_SECONDS * rate)))
    squares = np.add.reduceat(samples.astype(np.float64) ** 2, starts)
    return np.sqrt(squares / np.diff(starts, append=len(samples)))


def silence_share(levels: np.ndarray) -> float:
    """Share (0 to 1) of frames that are silent, from the levels [frames] of a clip.

    A frame is silent if it is more than 40 dB below the clip's loudest frame (a quiet recording is not silence), or
    below -60 dB of full scale (noise of the recorder alone is no signal).
    """
    threshold = max(10 ** (SILENT_BELOW_FULL_SCALE_DB / 20), levels.max() * 10 ** (SILENT_BELOW_LOUDEST_DB / 20))
    return float((levels < threshold).mean())
