"""Changes of waveforms for training clips: noise, rooms, speed, levels. Samples are float32 arrays [S] at 16 kHz."""

import numpy as np
import soxr
from scipy.signal import oaconvolve

from audiolm_lite.audio.reading import SAMPLE_RATE

# A frame this far below the loudest one counts as a pause.
_PAUSE_DB = 40.0
_FRAME = 320  # samples, 20 ms


def active_level(wave: np.ndarray) -> float:
    """Root mean square of the frames of 20 ms that are not pauses; 0 for silence.

    Examples
    --------
    >>> speech, pause = np.full(SAMPLE_RATE, 0.5, np.float32), np.zeros(SAMPLE_RATE, np.float32)
    >>> active_level(speech) == active_level(np.concatenate([speech, pause])) == 0.5
    True
    """
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME) if len(wave) >= _FRAME else wave[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    loudest = power.max()
    return float(np.sqrt(power[power >= loudest * 10 ** (-_PAUSE_DB / 10)].mean())) if loudest > 0 else 0.0


def coloured_noise(samples: int, slope: float, generator: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with frequency ** slope: 0 is white, 0.5 pink, 1 brown; its largest value is 1.

    Examples
    --------
    >>> noise = coloured_noise(16000, slope=1.0, generator=np.random.default_rng(0))
    >>> spectrum = np.abs(np.fft.rfft(noise))
    >>> bool(spectrum[20:200].mean() > 10 * spectrum[2000:].mean())
    True
    """
    # A period of about 8 s is enough, and its FFT is several times as fast as one over a long clip.
    period = min(samples, 1 << 17)
    spectrum = np.fft.rfft(generator.standard_normal(period))
    spectrum[0] = 0.0
    spectrum[1:] /= np.maximum(np.arange(1, len(spectrum)), period * 20 // SAMPLE_RATE) ** slope
    noise = np.fft.irfft(spectrum, period)
    return np.resize(noise / np.abs(noise).max(), samples).astype(np.float32)


def add_noise(wave: np.ndarray, noise: np.ndarray, ratio: float) -> np.ndarray:
    """Add a noise so that the wave's level (without pauses) is `ratio` dB above the noise's; silent ones add nothing.

    Examples
    --------
    >>> wave, noise = np.full(640, 0.4, np.float32), np.tile(np.float32([0.1, -0.1]), 160)
    >>> mixed = add_noise(wave, noise, ratio=20.0)  # the shorter noise is repeated
    >>> bool(np.abs(np.abs(mixed - wave) - 0.04).max() < 1e-6)
    True
    """
    level, noise_level = active_level(wave), active_level(noise)
    if level == 0 or noise_level == 0:
        return wave
    return wave + np.resize(noise, len(wave)) * np.float32(level / noise_level * 10 ** (-ratio / 20))


def in_room(wave: np.ndarray, reverberation: float, direct: float, generator: np.random.Generator) -> np.ndarray:
    """Convolve with a synthetic room: the direct sound, then white noise that decays exponentially.

    Parameters
    ----------
    wave : ndarray
        Samples [S].
    reverberation : float
        Seconds until the decaying noise is 60 dB lower (RT60).
    direct : float
        Energy of the direct sound above that of the reverberation, in dB.
    generator : Generator
        Of the noise.

    Returns
    -------
    ndarray
        [S]; the reverberation after the end is cut off.

    Examples
    --------
    >>> click = np.zeros(8000, np.float32)
    >>> click[0] = 1.0
    >>> response = in_room(click, reverberation=0.2, direct=0.0, generator=np.random.default_rng(0))
    >>> energies = [float(np.square(part).sum()) for part in (response[:1], response[1:3200], response[3200:])]
    >>> [round(energy, 2) for energy in energies]
    [1.0, 1.0, 0.0]
    """
    samples = round(reverberation * SAMPLE_RATE)
    tail = generator.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail *= 10 ** (-direct / 20) / np.sqrt(np.square(tail).sum())
    response = np.concatenate([[1.0], tail]).astype(np.float32)
    return oaconvolve(wave, response)[: len(wave)].astype(np.float32)


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """Play faster (factor above 1) or slower, with the pitch.

    Examples
    --------
    >>> len(change_speed(np.zeros(16000, np.float32), 1.1))
    14545
    """
    return soxr.resample(wave, SAMPLE_RATE, SAMPLE_RATE / factor, quality="HQ") if factor != 1.0 else wave


def set_peak(wave: np.ndarray, decibels: float) -> np.ndarray:
    """Scale so that the largest absolute value is `decibels` relative to full scale; silence stays silence.

    Examples
    --------
    >>> [round(float(sample), 6) for sample in set_peak(np.array([0.1, -0.5], np.float32), -20.0)]
    [0.02, -0.1]
    """
    peak = float(np.abs(wave).max())
    return wave * np.float32(10 ** (decibels / 20) / peak) if peak > 0 else wave
