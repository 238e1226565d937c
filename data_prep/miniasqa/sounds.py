"""Synthetic sound events: the ten classes of ESC-10 and four more, each with a tempo and a loudness trend.

Every sound is a function `(rng, seconds, fast) -> samples [S]` at 16 kHz, float64, any scale.
"""

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

RATE = 16000
TREND = ("steady", "rising", "fading")


@dataclass(frozen=True)
class SoundEvent:
    """One sound: its class, tempo (`fast` or not) and loudness trend (one of `TREND`)."""

    label: str
    fast: bool
    trend: str
    seconds: float


def synthesise(event: SoundEvent, rng: np.random.Generator) -> np.ndarray:
    """Return the sound as float32 [S] with peak 1.

    Examples
    --------
    >>> samples = synthesise(SoundEvent("bell", False, "fading", 2.0), np.random.default_rng(0))
    >>> samples.dtype, samples.shape, round(float(abs(samples).max()), 3)
    (dtype('float32'), (32000,), 1.0)
    """
    samples = SOUNDS[event.label](rng, event.seconds, event.fast)
    envelope = {
        "steady": np.ones(len(samples)),
        "rising": np.linspace(0.08, 1.0, len(samples)),
        "fading": np.linspace(1.0, 0.08, len(samples)),
    }[event.trend]
    samples = samples * envelope
    return (samples / (np.abs(samples).max() + 1e-9)).astype(np.float32)


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE)) / RATE


def _noise(rng: np.random.Generator, seconds: float, low: float, high: float) -> np.ndarray:
    sos = butter(2, [low, high], "bandpass", fs=RATE, output="sos")
    return sosfilt(sos, rng.standard_normal(int(seconds * RATE)))


def _sweep(frequency: np.ndarray, harmonics: tuple[float, ...]) -> np.ndarray:
    """Harmonic tone with the fundamental `frequency` [S] in Hz; `harmonics` are the amplitudes of 1 f, 2 f, ..."""
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return sum(a * np.sin((k + 1) * phase) * ((k + 1) * frequency < 7800) for k, a in enumerate(harmonics))


def _repeat(rng: np.random.Generator, seconds: float, period: float, one, jitter: float = 0.1) -> np.ndarray:
    """Place `one(rng)` about every `period` seconds."""
    out = np.zeros(int(seconds * RATE))
    at = rng.uniform(0, 0.3 * period)
    while at < seconds - 0.05:
        piece = one(rng)
        start = int(at * RATE)
        stop = min(len(out), start + len(piece))
        out[start:stop] += piece[: stop - start]
        at += period * (1 + rng.uniform(-jitter, jitter))
    return out


def _arch(t: np.ndarray, length: float) -> np.ndarray:
    return np.sin(np.pi * np.clip(t / length, 0, 1))


def _dog(rng, seconds, fast):
    pitch = rng.uniform(350, 750)

    def bark(rng):
        t = _time(rng.uniform(0.12, 0.2))
        f = pitch * (0.7 + 0.6 * _arch(t, t[-1]))
        return _arch(t, t[-1]) * (_sweep(f, (1, 0.8, 0.5, 0.3)) + 0.3 * rng.standard_normal(len(t)))

    return _repeat(rng, seconds, 0.38 if fast else 0.95, bark)


def _rain(rng, seconds, fast):
    base = _noise(rng, seconds, 900, 7500)
    drops = np.zeros_like(base)
    rate = 90 if fast else 22
    for at in rng.integers(0, max(1, len(base) - 200), int(rate * seconds)):
        t = np.arange(120) / RATE
        drops[at : at + 120] += rng.uniform(0.5, 2) * np.exp(-t * 400) * np.sin(2 * np.pi * rng.uniform(2000, 5000) * t)
    return (0.9 if fast else 0.35) * base + 1.5 * drops


def _sea_waves(rng, seconds, fast):
    t = _time(seconds)
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (1.0 if fast else 0.4) * t + rng.uniform(0, 6.28))
    return _noise(rng, seconds, 60, 1400) * (0.1 + swell**2)


def _baby(rng, seconds, fast):
    pitch = rng.uniform(380, 560)

    def cry(rng):
        t = _time(0.35 if fast else 0.85)
        f = pitch * (1 + 0.18 * _arch(t, t[-1]) + 0.03 * np.sin(2 * np.pi * 22 * t))
        return _arch(t, t[-1]) ** 0.5 * _sweep(f, (1, 0.7, 0.9, 0.6, 0.3, 0.2))

    return _repeat(rng, seconds, 0.45 if fast else 1.1, cry)


def _clock(rng, seconds, fast):
    pitch = rng.uniform(1800, 3200)

    def tick(rng):
        t = _time(0.03)
        return np.exp(-t * 220) * np.sin(2 * np.pi * pitch * t) + 0.3 * np.exp(-t * 500) * rng.standard_normal(len(t))

    return _repeat(rng, seconds, 0.22 if fast else 0.55, tick, jitter=0.01) + 0.002 * rng.standard_normal(
        int(seconds * RATE)
    )


def _sneeze(rng, seconds, fast):
    pitch = rng.uniform(250, 450)

    def sneeze(rng):
        intake = _time(0.25)
        breath = 0.15 * (intake / 0.25) * rng.standard_normal(len(intake))
        t = _time(0.3)
        burst = np.exp(-t * 9) * (rng.standard_normal(len(t)) + 0.6 * _sweep(pitch * (1.3 - t), (1, 0.5, 0.3)))
        return np.concatenate([breath, burst])

    return _repeat(rng, seconds, 0.75 if fast else 1.6, sneeze)


def _helicopter(rng, seconds, fast):
    t = _time(seconds)
    rate = rng.uniform(16, 20) if fast else rng.uniform(9, 12)
    chop = np.clip(np.sin(2 * np.pi * rate * t), 0, 1) ** 3
    return chop * _noise(rng, seconds, 50, 900) + 0.15 * _noise(rng, seconds, 200, 3000)


def _chainsaw(rng, seconds, fast):
    t = _time(seconds)
    f = rng.uniform(85, 130) * (1.6 if fast else 1.0) * (1 + 0.12 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6)))
    tone = _sweep(f, tuple(1 / (k + 1) ** 0.4 for k in range(24)))
    return np.tanh(2 * tone) + 0.35 * rng.standard_normal(len(t))


def _rooster(rng, seconds, fast):
    pitch = rng.uniform(550, 800)

    def crow(rng):
        t = _time(0.7 if fast else 1.3)
        x = t / t[-1]
        f = pitch * np.interp(x, [0, 0.15, 0.2, 0.35, 0.45, 0.85, 1], [0.8, 1.1, 0.9, 1.3, 1.5, 1.45, 0.8])
        gate = np.interp(x, [0, 0.05, 0.16, 0.19, 0.3, 0.34, 0.4, 0.9, 1], [0, 1, 1, 0.1, 1, 0.2, 1, 1, 0])
        return gate * _sweep(f, (1, 0.9, 0.6, 0.4, 0.3))

    return _repeat(rng, seconds, 0.9 if fast else 1.6, crow)


def _fire(rng, seconds, fast):
    out = 0.12 * _noise(rng, seconds, 80, 700)
    for at in rng.integers(0, max(1, len(out) - 400), int((45 if fast else 14) * seconds)):
        n = int(rng.integers(30, 300))
        burst = rng.standard_normal(n) * np.exp(-np.arange(n) / (n / 5))
        out[at : at + n] += rng.uniform(0.3, 1.6) * burst[: len(out) - at]
    return out


def _siren(rng, seconds, fast):
    t = _time(seconds)
    wave = np.sin(2 * np.pi * (2.2 if fast else 0.55) * t + rng.uniform(0, 6.28))
    return _sweep(rng.uniform(750, 950) * (1 + 0.35 * wave), (1, 0.3, 0.15))


def _bell(rng, seconds, fast):
    pitch = rng.uniform(420, 900)

    def strike(rng):
        t = _time(1.4)
        partials = zip((0.5, 1, 1.19, 1.56, 2, 2.51, 3.01), (0.4, 1, 0.7, 0.5, 0.6, 0.3, 0.2), strict=True)
        return sum(a * np.exp(-t * (1.5 + 1.2 * r)) * np.sin(2 * np.pi * pitch * r * t) for r, a in partials)

    return _repeat(rng, seconds, 0.45 if fast else 1.2, strike, jitter=0.03)


def _telephone(rng, seconds, fast):
    low, high = rng.uniform(400, 460), rng.uniform(470, 560)

    def ring(rng):
        t = _time(0.25 if fast else 0.8)
        warble = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 20 * t))
        return warble * (np.sin(2 * np.pi * 2 * low * t) + np.sin(2 * np.pi * 2 * high * t))

    return _repeat(rng, seconds, 0.4 if fast else 1.2, ring, jitter=0.01)


def _bird(rng, seconds, fast):
    pitch = rng.uniform(2400, 4200)

    def chirp(rng):
        t = _time(0.09)
        return _arch(t, t[-1]) * _sweep(pitch * (1 + rng.uniform(0.1, 0.4) * np.sin(np.pi * t / 0.09)), (1, 0.2))

    return _repeat(rng, seconds, 0.14 if fast else 0.42, chirp, jitter=0.25)


SOUNDS = {
    "dog": _dog,
    "rain": _rain,
    "sea waves": _sea_waves,
    "crying baby": _baby,
    "clock tick": _clock,
    "sneeze": _sneeze,
    "helicopter": _helicopter,
    "chainsaw": _chainsaw,
    "rooster": _rooster,
    "crackling fire": _fire,
    "siren": _siren,
    "bell": _bell,
    "telephone": _telephone,
    "bird": _bird,
}
