"""Check of the durations that an encoder accepts."""

from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE

SPLIT = "split it into segments (start and duration in the manifest)"


def check_clip_length(
    encoder: str, samples: Tensor | int, least: int, most: int | None = None, remedy: str = SPLIT
) -> None:
    """Check that an encoder accepts clips of these lengths.

    Parameters
    ----------
    encoder : str
        Type of the encoder, for messages.
    samples : Tensor or int
        Samples of several clips or of one, at 16 kHz.
    least, most : int
        Shortest and longest clip accepted, in samples; no longest one if None.
    remedy : str
        What to do about a longer clip.

    Raises
    ------
    ValueError
        A clip is too short or too long.

    Examples
    --------
    >>> check_clip_length("ssl", 480000, least=400, most=160000)
    Traceback (most recent call last):
    ValueError: clip of 30.00 s is longer than the 10 s that the ssl encoder accepts; split it into segments ...
    """
    values = samples.tolist() if isinstance(samples, Tensor) else [samples]
    shortest, longest = min(values), max(values)
    if most is not None and longest > most:
        raise ValueError(
            f"clip of {longest / SAMPLE_RATE:.2f} s is longer than the {most / SAMPLE_RATE:g} s that the {encoder} "
            f"encoder accepts; {remedy}"
        )
    if shortest < least:
        raise ValueError(
            f"clip of {shortest} samples is shorter than the {least} ({1000 * least / SAMPLE_RATE:g} ms) that the "
            f"{encoder} encoder needs; drop it from the manifest"
        )
