"""Clips that are longer than an encoder accepts: rejected, cropped, or encoded in chunks.

One rule for the extraction of features, for training on live audio and for answers: `LongAudio.plan` decides from a
clip's duration what is read of it, `LongAudio.read` reads that and divides it, `LongAudio.encode` encodes the parts.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.config.keys import LONG_AUDIO


class LongAudioWarning(UserWarning):
    """An answer is about a part of a clip, because the clip is longer than the encoder accepts."""


class Segment(NamedTuple):
    """A part of an audio file, in seconds, to its end where `duration` is None; of one channel, or the mean of all."""

    audio: str
    start: float
    duration: float | None
    channel: int | None = None


class ClipPlan(NamedTuple):
    """What is read and encoded of a clip.

    Attributes
    ----------
    segment : Segment
        What is read.
    chunks : int
        Number of parts that are encoded separately.
    chunk_seconds : float
        What the encoder computes for the longest of them, including its padding.
    seconds : float
        Audio that is encoded.
    cut : dict or None
        For the store's index: what was done to a clip that is longer than the encoder accepts.
    """

    segment: Segment
    chunks: int
    chunk_seconds: float
    seconds: float
    cut: dict[str, Any] | None


class LongAudio:
    """Rule for clips that are longer than the encoder accepts.

    Parameters
    ----------
    rule : {"reject", "crop", "random_crop", "chunk"}
        "reject": these clips are errors. "crop": their beginning is encoded. "random_crop": a part is encoded that
        depends only on the seed and the clip's key. "chunk": they are encoded in chunks of the greatest length, whose
        features are concatenated; if less than a second remained for the last chunk, the last two have equal length.
    encoder : Module
        Has `num_frames`, `frame_seconds` and, if there is a limit, `max_seconds`.
    seed : int
        For "random_crop".

    Raises
    ------
    ValueError
        Unknown rule.
    """

    def __init__(self, rule: str, encoder: nn.Module, seed: int = 0):
        if rule not in LONG_AUDIO:
            raise ValueError(f"long_audio is {rule!r}; it must be one of {', '.join(LONG_AUDIO)}")
        self.rule, self.encoder, self.seed = rule, encoder, seed
        # The encoder itself rejects a clip above its limit.
        limit = math.inf if rule == "reject" else getattr(encoder, "max_seconds", math.inf)
        self.max_samples = limit * SAMPLE_RATE

    def __str__(self) -> str:
        """The rule, as a store's header records it."""
        return f"random_crop, seed {self.seed}" if self.rule == "random_crop" else self.rule

    def plan(self, key: str, segment: Segment, audio_root: Path) -> ClipPlan:
        """Plan a clip from its duration, which is read from the file's header if `segment` has none.

        Raises
        ------
        ValueError
            The encoder does not accept the clip, or (AudioError) the header cannot be read.
        """
        seconds = segment.duration or audio_duration(audio_root / segment.audio) - segment.start
        samples, cut = round(seconds * SAMPLE_RATE), None
        if samples > self.max_samples and self.rule != "chunk":
            first = self._random_start(key, samples) if self.rule == "random_crop" else 0
            kept_from, kept = first / SAMPLE_RATE, self.max_samples / SAMPLE_RATE
            cut = {"seconds": seconds, "kept_from": kept_from, "kept": kept}
            segment = segment._replace(start=segment.start + kept_from, duration=kept)
            samples = int(self.max_samples)
        chunks = self.chunk_lengths(samples)
        if len(chunks) > 1:
            cut = {"seconds": seconds, "chunks": len(chunks)}
        frames = max(self.encoder.num_frames(chunk) for chunk in chunks)
        return ClipPlan(segment, len(chunks), frames * self.encoder.frame_seconds, samples / SAMPLE_RATE, cut)

    def read(self, plan: ClipPlan, audio_root: Path) -> tuple[Tensor, list[int]]:
        """Read a planned clip: samples [S], float32, and the lengths of the chunks that they consist of.

        Raises
        ------
        ValueError
            The encoder does not accept a chunk (the duration in the manifest may be wrong), or (AudioError) the file
            cannot be read.
        """
        audio, start, duration, channel = plan.segment
        samples = read_audio(audio_root / audio, start, duration, channel=channel)
        if plan.cut and "kept" in plan.cut:
            samples = samples[: round(plan.seconds * SAMPLE_RATE)]  # resampling may have added a sample
        lengths = self.chunk_lengths(len(samples))
        for length in lengths:
            self.encoder.num_frames(length)
        return samples, lengths

    def num_frames(self, samples: Any) -> Any:
        """Encoder frames of clips of so many samples, an int or a tensor [B], after the rule has been applied.

        Raises
        ------
        ValueError
            The encoder does not accept a clip.
        """
        if isinstance(samples, Tensor):
            return torch.tensor([self.num_frames(count) for count in samples.tolist()], device=samples.device)
        if self.rule != "chunk":
            return self.encoder.num_frames(samples if samples <= self.max_samples else int(self.max_samples))
        return sum(self.encoder.num_frames(chunk) for chunk in self.chunk_lengths(samples))

    def encode(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms [B, S] of `samples` [B] each; features [B, L, T, D] and frames [B].

        Chunks of all clips are encoded as one batch, and the features of each clip are concatenated.
        """
        lengths = [self.chunk_lengths(count) for count in samples.tolist()]
        if all(len(chunks) == 1 for chunks in lengths):
            return self.encoder(waveforms, samples)
        clips = (clip[:count].split(chunks) for clip, count, chunks in zip(waveforms, samples.tolist(), lengths))
        chunks = [chunk for clip in clips for chunk in clip]
        counts = torch.tensor([len(chunk) for chunk in chunks], device=samples.device)
        features, frames = self.encoder(nn.utils.rnn.pad_sequence(chunks, batch_first=True), counts)
        encoded = iter([chunk[:, :count] for chunk, count in zip(features, frames.tolist())])
        joined = [torch.cat([next(encoded) for _ in clip], dim=1) for clip in lengths]
        padded = nn.utils.rnn.pad_sequence([clip.transpose(0, 1) for clip in joined], batch_first=True)
        totals = torch.tensor([clip.shape[1] for clip in joined], device=frames.device)
        return padded.transpose(1, 2), totals

    def chunk_lengths(self, samples: int) -> list[int]:
        """Lengths of the chunks in which a clip of so many samples is encoded."""
        if samples <= self.max_samples:
            return [samples]
        longest = int(self.max_samples)
        lengths = [longest] * (samples // longest)
        if rest := samples % longest:
            lengths.append(rest)
            if rest < SAMPLE_RATE:
                frame = round(self.encoder.frame_seconds * SAMPLE_RATE)
                lengths[-2] = -(-(longest + rest) // (2 * frame)) * frame
                lengths[-1] = longest + rest - lengths[-2]
        return lengths

    def _random_start(self, key: str, samples: int) -> int:
        digest = hashlib.blake2b(json.dumps([self.seed, key]).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % (samples - int(self.max_samples) + 1)
