"""Filters: limits are inclusive, silence is a share of time, and wrong entries are named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError
from data_prep.filters import Dropped, Filters, frame_levels, silence_share


def noise(seconds: float, rate: int, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-level, level, round(seconds * rate)).astype(np.float32)


def silent(samples: np.ndarray, rate: int) -> float:
    return silence_share(frame_levels(samples, rate))


@given(
    rate=st.sampled_from([8000, 16000, 22050, 44100, 96000]),
    quiet=st.integers(0, 40),
    loud=st.integers(1, 40),
    gain=st.floats(0.02, 5.0),
)
def test_silence_is_a_share_of_time_at_any_rate_and_gain(rate, quiet, loud, gain):
    """Blocks of 0.1 s: their share is the share of time, up to the frames on the border of a block."""
    samples = gain * np.concatenate([np.zeros(round(0.1 * quiet * rate)), noise(0.1 * loud, rate)])
    assert silent(samples, rate) == pytest.approx(quiet / (quiet + loud), abs=0.2 / (quiet + loud))


def test_silence_is_relative_to_the_clip_with_an_absolute_floor():
    loud, faint = noise(1, 16000, 1.0), noise(1, 16000, 0.005)  # 46 dB apart
    assert silent(np.concatenate([loud, faint]), 16000) == 0.5
    assert silent(faint, 16000) == 0.0  # quiet throughout, but nothing in it is louder
    assert silent(noise(1, 16000, 1e-4), 16000) == 1.0
    assert silent(np.zeros(16000), 16000) == 1.0
    assert silent(np.ones(1, np.float32), 16000) == 0.0


@pytest.mark.parametrize(
    ("block", "check", "passes", "drops"),
    [
        ({"min_seconds": 3}, "check_seconds", 3.0, 2.99),
        ({"max_seconds": 25.0}, "check_seconds", 25.0, 25.01),
        ({"max_characters": 3}, "check_characters", "가나다", "가나다라"),
        ({"max_silence": 0.5}, "check_silence", 0.5, 0.51),
    ],
)
def test_limits_are_inclusive_and_off_by_default(block, check, passes, drops):
    getattr(Filters.from_config(block), check)(passes)
    getattr(Filters.from_config(None), check)(drops)
    with pytest.raises(Dropped) as dropped:
        getattr(Filters.from_config(block), check)(drops)
    assert dropped.value.filter == next(iter(block)) and next(iter(block)) in dropped.value.reason


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"min_second": 1}, "unknown entry 'min_second'; did you mean 'min_seconds'"),
        ({"max_seconds": "25"}, "max_seconds is '25'"),
        ({"max_silence": 50}, "max_silence is 50; write a share from 0 to 1"),
        ({"max_characters": -1}, "max_characters is -1"),
        ({"min_seconds": 5, "max_seconds": 3}, "min_seconds 5 is above max_seconds 3"),
        ({"duplicates": True}, "duplicates is True; choose keep or drop"),
    ],
)
def test_wrong_entries_are_named(block, message):
    with pytest.raises(ConfigError, match=message):
        Filters.from_config(block)
