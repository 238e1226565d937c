"""Files of formats that libsndfile cannot write, made by PyAV."""

from pathlib import Path

import numpy as np


def encode(path: Path, codec: str, container: str, samples: np.ndarray, rate: int) -> None:
    """Encode samples [S] or [S, 2] with a codec of FFmpeg into one of its containers."""
    import av

    planes = np.atleast_2d(np.asarray(samples, np.float32).T)
    layout = "mono" if len(planes) == 1 else "stereo"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        for part in (*converter.resample(frame), None):
            file.mux(stream.encode(part))
