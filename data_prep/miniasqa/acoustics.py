"""Recording conditions: reverberation, noise, and mixing at a given level."""

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import fftconvolve

RATE = 16000


def reverberate(samples: np.ndarray, rng: np.random.Generator, rt60: float, wet: float) -> np.ndarray:
    """Add a reverberant tail of `rt60` seconds (exponentially decaying noise); the length does not change.

    Examples
    --------
    >>> click = np.zeros(1600)
    >>> click[0] = 1.0
    >>> wet = reverberate(click, np.random.default_rng(0), rt60=0.05, wet=0.5)
    >>> len(wet), bool(abs(wet[1:400]).max() > abs(wet[400:800]).max() > 0)
    (1600, True)
    """
    length = max(1, int(rt60 * RATE))
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[0] = 0.0
    tail /= np.sqrt((tail**2).sum())
    return samples + wet * fftconvolve(samples, tail)[: len(samples)]


def coloured_noise(rng: np.random.Generator, count: int, tilt: float) -> np.ndarray:
    """Noise with spectrum 1 / f ** tilt: 0 is white, 0.5 pink, 1 brown; root mean square 1.

    Examples
    --------
    >>> pink = coloured_noise(np.random.default_rng(0), RATE, tilt=0.5)
    >>> len(pink), round(float(np.sqrt((pink**2).mean())), 6)
    (16000, 1.0)
    """
    length = next_fast_len(count, real=True)  # the transform of a prime number of samples takes ten times as long
    spectrum = rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** tilt
    noise = irfft(spectrum, length)[:count]
    return noise / (np.sqrt((noise**2).mean()) + 1e-12)


def add_at_snr(signal: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `other` [S] so that `signal` [S] is `snr_db` decibels louder (root mean square over all samples).

    Examples
    --------
    >>> add_at_snr(np.ones(2), np.array([1.0, -1.0]), snr_db=20).round(6)
    array([1.1, 0.9])
    """
    power = np.sqrt((signal**2).mean()) + 1e-9
    return signal + other * (power / (np.sqrt((other**2).mean()) + 1e-9) * 10 ** (-snr_db / 20))
