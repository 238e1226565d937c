"""Rules for clips that are longer than the encoder takes."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration

LONG_AUDIO = ("reject", "crop", "random_crop", "chunk")


class Source(NamedTuple):
    """Audio of a key: a file and the segment of it that is meant, in seconds; to its end where duration is None."""

    audio: str
    start: float
    duration: float | None


class Plan(NamedTuple):
    """What is done for a key.

    Attributes
    ----------
    source : Source
        What is read.
    pieces : int
        Parts that are encoded one by one.
    piece_seconds : float
        What the encoder computes for the longest of them, its padding included.
    seconds : float
        Audio that is encoded.
    cut : dict or None
        What was done to a clip that is longer than the encoder takes, for the store's index.
    """

    source: Source
    pieces: int
    piece_seconds: float
    seconds: float
    cut: dict[str, Any] | None


class LongAudio:
    """What becomes of clips that are longer than the encoder takes.

    Parameters
    ----------
    rule : {"reject", "crop", "random_crop", "chunk"}
        "reject": they have no features. "crop": their beginning is encoded. "random_crop": a part that depends on the
        seed and the key alone. "chunk": they are encoded in parts of the greatest length, and the features
        concatenated; where less than a second would be left, the last two parts share their audio evenly.
    encoder : Module
        Has `num_frames`, `frame_seconds` and, if it takes no more than that, `max_seconds`.
    seed : int
        For "random_crop".
    """

    def __init__(self, rule: str, encoder: nn.Module, seed: int = 0):
        if rule not in LONG_AUDIO:
            raise ValueError(f"long_audio is {rule!r}; it must be one of {', '.join(LONG_AUDIO)}")
        self.rule, self.encoder, self.seed = rule, encoder, seed
        self.most = math.inf if rule == "reject" else getattr(encoder, "max_seconds", math.inf) * SAMPLE_RATE

    def __str__(self) -> str:
        """The rule, as a store's header names it."""
        return f"random_crop, seed {self.seed}" if self.rule == "random_crop" else self.rule

    def plan(self, key: str, source: Source, seconds: float) -> Plan:
        """Plan the extraction of a clip of so many seconds; raises ValueError where the encoder does not take it."""
        samples, cut = round(seconds * SAMPLE_RATE), None
        if samples > self.most and self.rule != "chunk":
            first = self._chance(key, samples) if self.rule == "random_crop" else 0
            cut = {"seconds": seconds, "kept_from": first / SAMPLE_RATE, "kept": self.most / SAMPLE_RATE}
            source = source._replace(start=source.start + cut["kept_from"], duration=cut["kept"])
            samples = int(self.most)
        pieces = self.pieces(samples)
        if len(pieces) > 1:
            cut = {"seconds": seconds, "chunks": len(pieces)}
        frames = max(self.encoder.num_frames(piece) for piece in pieces)
        return Plan(source, len(pieces), frames * self.encoder.frame_seconds, samples / SAMPLE_RATE, cut)

    def pieces(self, samples: int) -> list[int]:
        """Lengths of the parts in which a clip is encoded."""
        if samples <= self.most:
            return [samples]
        most = int(self.most)
        pieces = [most] * (samples // most)
        if rest := samples % most:
            pieces.append(rest)
            if rest < SAMPLE_RATE:
                frame = round(self.encoder.frame_seconds * SAMPLE_RATE)
                pieces[-2] = -(-(most + rest) // (2 * frame)) * frame
                pieces[-1] = most + rest - pieces[-2]
        return pieces

    def _chance(self, key: str, samples: int) -> int:
        digest = hashlib.blake2b(json.dumps([self.seed, key]).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (samples - int(self.most) + 1)


def seconds_of(source: Source, audio_root: Path) -> float:
    """Duration of a source; raises AudioError."""
    return source.duration or audio_duration(audio_root / source.audio) - source.start
