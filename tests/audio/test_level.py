"""The level by which silence is found."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.audio.level import level_dbfs

NOISE = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))


@given(gain=st.floats(-80, 0), offset=st.floats(-0.5, 0.5), silence=st.integers(0, 16000))
def test_gain_counts_and_offsets_and_silence_around_do_not(gain, offset, silence):
    clip = NOISE * 10 ** (gain / 20)
    assert abs(level_dbfs(clip) - level_dbfs(NOISE) - gain) < 0.05
    assert abs(level_dbfs(clip + offset) - level_dbfs(clip)) < 0.5
    padded = torch.cat([torch.zeros(silence // 320 * 320), clip])
    assert abs(level_dbfs(padded) - level_dbfs(clip)) < 0.2


def test_a_word_at_the_very_end_counts():
    assert level_dbfs(torch.cat([torch.zeros(1000), NOISE[:320]])) > -25
