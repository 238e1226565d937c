"""Windows of long recordings: nothing is lost, none is too long or too short, and cuts are in pauses."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.audio.samples import SampleArray
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


@settings(max_examples=25, deadline=None)
@given(
    words=st.lists(st.tuples(st.floats(0.2, 1.5), st.floats(0.25, 0.6)), min_size=1, max_size=25),
    longest=st.floats(4.0, 7.0),
    extra=st.floats(0.0, 3.0),
)
def test_no_word_is_lost_or_cut(words, longest, extra):
    """Words of noise with pauses: windows cover the audio, none is too long, and each word is in one of them."""
    generator, spans, parts, position = np.random.default_rng(0), [], [], 0
    for spoken, pause in words:
        count, silent = round(16000 * spoken), round(16000 * pause)
        parts += [generator.uniform(0.1, 0.3, count), np.zeros(silent)]
        spans.append((position, position + count))
        position += count + silent
    samples = np.concatenate(parts).astype(np.float32)
    windows = list(audio_windows(SampleArray(samples, 16000), longest, longest + extra))
    np.testing.assert_array_equal(torch.cat([window.samples for window in windows]), samples)
    ends = np.cumsum([len(window.samples) for window in windows])
    assert [round(16000 * window.start) for window in windows] == [0, *ends[:-1]]
    limit = longest if len(windows) > 1 else longest + extra
    assert max(len(window.samples) for window in windows) <= round(16000 * limit)
    assert (len(windows) == 1) == (len(samples) <= max(round(16000 * longest), round(16000 * (longest + extra))))
    # The second half of a window, of two seconds or more, always has a pause, except just before the end.
    cut_words = [cut for cut in ends[:-1] for begin, end in spans if begin < cut < end]
    assert len([cut for cut in cut_words if cut < len(samples) - 32000]) == 0


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
