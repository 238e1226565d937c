"""Windows of long recordings: nothing is lost, none is too long or too short, and cuts are in pauses."""

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.audio.windows import audio_windows


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
@pytest.mark.parametrize("seconds", [0.3, 4.0, 4.01, 5.3, 31.7])
def test_windows_together_are_the_recording(tmp_path, rate, seconds):
    """Also at other rates, which are converted piece by piece."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(rate * seconds))
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    windows = list(audio_windows(tmp_path / "a.wav", longest=4.0))
    torch.testing.assert_close(torch.cat([w.samples for w in windows]), read_audio(tmp_path / "a.wav"))
    lengths = [len(window.samples) for window in windows]
    assert [round(16000 * window.start) for window in windows] == [sum(lengths[:i]) for i in range(len(lengths))]
    assert max(lengths) <= 4.0 * 16000 and (len(windows) == 1) == (seconds <= 4)
    assert min(lengths) >= min(16000, 16000 * seconds)


def test_cuts_are_in_pauses_of_noisy_speech(tmp_path):
    generator = np.random.default_rng(1)
    samples = 0.2 * generator.standard_normal(16000 * 12)
    pauses = [(2.7, 3.0), (5.6, 5.9), (8.2, 8.5)]
    for begin, end in pauses:
        samples[int(16000 * begin) : int(16000 * end)] *= 0.1
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    cuts = [window.start for window in audio_windows(tmp_path / "a.wav", longest=4.0)][1:]
    assert len(cuts) == 3 and all(begin < cut < end for cut, (begin, end) in zip(cuts, pauses))


def test_a_file_that_is_damaged_later_on_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.flac", 0.1 * np.random.default_rng(2).standard_normal(16000 * 30), 16000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError, match="a.flac"):
        list(audio_windows(tmp_path / "a.flac", longest=4.0))
