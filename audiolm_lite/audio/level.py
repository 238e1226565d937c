"""Level of a recording, by which clips without any sound are found."""

import math

import numpy as np
from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE

_FRAME = SAMPLE_RATE // 50  # samples: 20 ms, about a period of the lowest voices


def level_dbfs(samples: Tensor) -> float:
    """Return the level of the loudest 20 ms of a clip.

    Parameters
    ----------
    samples : Tensor
        [S] float at 16 kHz, full scale 1. A constant offset does not count.

    Returns
    -------
    float
        Root mean square in dB relative to full scale; -inf for digital silence. Speech is above -50, the noise of a
        quiet room below -60, that of rounding to 16 bit at -98.

    Examples
    --------
    >>> import torch
    >>> tone = torch.sin(torch.arange(3200) / 4)
    >>> round(level_dbfs(tone), 1), round(level_dbfs(0.001 * tone + 0.25), 1), level_dbfs(torch.zeros(400))
    (-3.0, -63.0, -inf)
    """
    if samples.numel() == 0:
        return -math.inf
    double = samples.cpu().numpy().astype(np.float64)  # on the CPU: not every device has float64
    centred = double - double.mean()
    # The last frame ends with the clip, so that all have the same length.
    begins = range(0, max(1, len(centred) - _FRAME + 1), _FRAME)
    frames = [centred[begin : begin + _FRAME] for begin in begins] + [centred[-_FRAME:]]
    loudest = float(np.square(np.stack(frames)).mean(axis=1).max())
    return 10 * math.log10(loudest) if loudest > 0 else -math.inf
