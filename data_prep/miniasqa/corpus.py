"""Planning and rendering of MiniASQA's clips.

A plan depends on the seed only. Rendering converts plans to samples, shard by shard, each shard in a new process
(espeak-ng keeps state between utterances). So the bytes do not depend on the number of processes or on interruptions.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import soxr

from data_prep.miniasqa.acoustics import add_at_snr, coloured_noise, reverberate
from data_prep.miniasqa.espeak import Espeak, Style
from data_prep.miniasqa.sentences import make_sentence, split_of
from data_prep.miniasqa.sounds import SOUNDS, TREND, SoundEvent, synthesise
from data_prep.miniasqa.voices import Speaker, make_speakers

RATE = 16000
SHARD = 100
# Prosody of each emotion: espeak's pitch, range and volume, and a factor on the rate.
STYLES = {
    "neutral": Style(50, 50, 100, 1.0),
    "happy": Style(72, 99, 100, 1.1),
    "sad": Style(30, 5, 70, 0.85),
    "angry": Style(52, 75, 100, 1.18),
}


@dataclass(frozen=True)
class Plan:
    """One clip before it is rendered; `speaker` and `text` are None without speech, `sound` is None without sound.

    A clip with neither is noise of `seconds`.
    """

    name: str
    split: str
    seed: tuple[int, ...]
    speaker: Speaker | None = None
    text: str | None = None
    spoken: str | None = None
    emotion: str | None = None
    sound: SoundEvent | None = None
    seconds: float | None = None

    @property
    def kind(self) -> str:
        """``speech``, ``sound``, ``mixture`` or ``noise``."""
        if self.speaker is None:
            return "noise" if self.sound is None else "sound"
        return "speech" if self.sound is None else "mixture"


@dataclass
class Clip:
    """A rendered plan: int16 samples [S] at 16 kHz, and words and phonemes with start and end in seconds."""

    plan: Plan
    samples: np.ndarray
    words: list[tuple[str, float, float]]
    phonemes: list[tuple[str, float, float]]


def make_plans(seed: int, split: str, speech: int, sound: int, mixture: int, noise: int = 0) -> list[Plan]:
    """Draw the clips of a split.

    Parameters
    ----------
    seed : int
        Corpora with different seeds have the same speakers and grammar, but independent clips.
    split : str
        No speaker and no sentence is in two splits.
    speech, sound, mixture, noise : int
        Number of clips of each kind.

    Returns
    -------
    list of Plan
        Speech first, then sounds, mixtures and noise.

    Examples
    --------
    >>> plans = make_plans(seed=1, split="test", speech=1, sound=1, mixture=1)
    >>> [(plan.name, plan.kind) for plan in plans]
    [('test-speech-00000', 'speech'), ('test-sound-00001', 'sound'), ('test-mixture-00002', 'mixture')]
    >>> plans[0].text, plans[1].sound.label
    ('please give him their long chair', 'rain')
    """
    speakers = make_speakers(split)
    kinds = ["speech"] * speech + ["sound"] * sound + ["mixture"] * mixture + ["noise"] * noise
    plans, labels = [], list(SOUNDS)
    for index, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, len(split), index])
        fields: dict[str, Any] = {}
        if kind == "noise":
            fields["seconds"] = float(np.round(rng.uniform(1.0, 4.0), 2))
        elif kind != "sound":
            text, spoken = make_sentence(rng)
            while split_of(text) != split:
                text, spoken = make_sentence(rng)
            emotion = list(STYLES)[int(rng.integers(len(STYLES)))]
            fields |= {"speaker": speakers[int(rng.integers(len(speakers)))]}
            fields |= {"text": text, "spoken": spoken, "emotion": emotion}
        if kind in ("sound", "mixture"):
            # Cycling through the classes keeps every split balanced.
            label, trend = labels[index % len(labels)], TREND[int(rng.integers(len(TREND)))]
            seconds = float(np.round(rng.uniform(2.0, 4.0), 2))
            fields["sound"] = SoundEvent(label, bool(rng.integers(2)), trend, seconds)
        plans.append(Plan(f"{split}-{kind}-{index:05d}", split, (seed, len(split), index), **fields))
    return plans


def render(plans: list[Plan], finish: Callable[[list[Clip]], Any], processes: int) -> Iterator[Any]:
    """Render all plans in shards of `SHARD` clips, and yield `finish(clips)` of every shard in order.

    Parameters
    ----------
    plans : list of Plan
        The clips.
    finish : callable
        Called with the clips of a shard in the rendering process; must be picklable.
    processes : int
        Number of rendering processes.
    """
    shards = [plans[i : i + SHARD] for i in range(0, len(plans), SHARD)]
    # Each worker is forked from a server process that has imported all modules and has not synthesised any speech. The
    # modules are named because the server does not import the main module
    # (https://github.com/python/cpython/issues/137996), and importing them takes longer than rendering a shard.
    try:
        context: BaseContext = get_context("forkserver")
        own = ("audiolm_lite", "data_prep")
        context.set_forkserver_preload([name for name in sys.modules if name.split(".")[0] in own])
    except ValueError:  # Windows
        context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        yield from pool.map(_render_and_finish, shards, [finish] * len(shards))


def _render_and_finish(plans: list[Plan], finish: Callable[[list[Clip]], Any]) -> Any:
    return finish(render_shard(plans))


def render_shard(plans: list[Plan]) -> list[Clip]:
    """Render plans in this process. For reproducible bytes, the process must not have synthesised speech before.

    Examples
    --------
    >>> clips = render_shard(make_plans(seed=1, split="test", speech=0, sound=2, mixture=0))
    >>> [(clip.plan.sound.label, clip.plan.sound.seconds, len(clip.samples) / RATE) for clip in clips]
    [('dog', 3.7, 3.7), ('rain', 3.21, 3.21)]
    """
    speakers = {plan.speaker.name: plan.speaker for plan in plans if plan.speaker}
    espeak = Espeak(list(speakers.values())) if speakers else None
    return [_render_one(plan, espeak) for plan in plans]


def _render_one(plan: Plan, espeak: Espeak | None) -> Clip:
    rng = np.random.default_rng([*plan.seed, 7])
    words, phonemes = [], []
    if plan.kind == "noise":
        samples = coloured_noise(rng, int(plan.seconds * RATE), rng.uniform(0, 1))
        # From silence to loud: below about -70 dB, the tone of a quiet room is a few steps of 16 bit.
        samples = samples / np.abs(samples).max() * 10 ** rng.uniform(-4.0, -0.1)
        return Clip(plan, np.round(samples * 32767).astype(np.int16), words, phonemes)
    if plan.speaker is None:
        samples = synthesise(plan.sound, rng).astype(np.float64)
    else:
        utterance = espeak.say(plan.speaker, plan.spoken, STYLES[plan.emotion])
        samples = soxr.resample(utterance.samples.astype(np.float64) / 32768, utterance.rate, RATE)
        if plan.emotion == "angry":  # more harmonics at the same pitch, as in a pressed voice
            samples = 0.5 * np.tanh(samples * 6)
        lead = float(np.round(rng.uniform(0.05, 0.35), 2))
        samples = np.concatenate([np.zeros(int(lead * RATE)), samples])
        # The text given to espeak respells some words; the labels are the words as written.
        written = plan.text.split(" ")
        words = [
            (w, round(a + lead, 3), round(b + lead, 3)) for w, (_, a, b) in zip(written, utterance.words, strict=True)
        ]
        phonemes = [(p, round(a + lead, 3), round(b + lead, 3)) for p, a, b in utterance.phonemes]
        if plan.sound is not None:
            background = SoundEvent(plan.sound.label, plan.sound.fast, plan.sound.trend, len(samples) / RATE)
            other = np.resize(synthesise(background, rng).astype(np.float64), len(samples))
            samples = add_at_snr(samples, other, rng.uniform(0, 12))
    if rng.random() < 0.5:
        samples = reverberate(samples, rng, rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5))
    noise = coloured_noise(rng, len(samples), rng.uniform(0, 1))
    samples = add_at_snr(samples, noise, rng.uniform(12, 40))
    samples = samples / (np.abs(samples).max() + 1e-9) * rng.uniform(0.15, 0.9)
    return Clip(plan, np.round(samples * 32767).astype(np.int16), words, phonemes)
