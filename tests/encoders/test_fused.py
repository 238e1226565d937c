"""Alignment in time, zeros after the shorter encoder, and refusals."""

import pytest
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.fused import Fused
from tests.tiny import BEATS

FAST = {"type": "beats", "source": BEATS}
SLOW = {**FAST, "layers": [-1], "pool": 4}


def make(**arguments):
    return build("encoders", {"type": "fused", "encoders": {"fast": FAST, "slow": SLOW}, **arguments})


def ramp(frames, layers, step):
    """Features [1, layers, frames, 8] whose value is the time of their frame's middle, in fast frames."""
    middles = (torch.arange(frames) + 0.5) * step
    return middles[None, None, :, None].expand(1, layers, -1, 8), torch.tensor([frames])


def test_nearest_repeats_the_slow_frame_that_spans_the_time():
    features, frames = make().join({"fast": ramp(10, 2, 1), "slow": ramp(3, 1, 4)})
    assert features.shape == (1, 1, 10, 2 * 8 + 8) and frames.tolist() == [10]
    assert features[0, 0, :, 0].tolist() == [i + 0.5 for i in range(10)]
    assert features[0, 0, :, -1].tolist() == [2] * 4 + [6] * 4 + [10] * 2


def test_linear_interpolates_to_the_times_of_the_grid():
    features, _ = make(align="linear").join({"fast": ramp(12, 2, 1), "slow": ramp(3, 1, 4)})
    expected = [2, 2] + [i + 0.5 for i in range(2, 10)] + [10, 10]  # first and last frames are repeated at the ends
    assert features[0, 0, :, -1].tolist() == pytest.approx(expected)


def test_the_grid_can_be_the_slow_encoder():
    encoder = make(grid="slow")
    assert encoder.frame_seconds == encoder.encoders["slow"].frame_seconds
    features, frames = encoder.join({"fast": ramp(12, 2, 1), "slow": ramp(3, 1, 4)})
    assert frames.tolist() == [3]
    assert features[0, 0, :, 0].tolist() == [2.5, 6.5, 10.5]


def test_a_shorter_encoder_repeats_its_last_valid_frame():
    slow, _ = ramp(3, 1, 4)
    encoded = {"fast": ramp(12, 2, 1), "slow": (slow, torch.tensor([2]))}  # the third frame belongs to a neighbour
    for align in ("nearest", "linear"):
        features, _ = make(align=align).join(encoded)
        assert features[0, 0, -4:, -1].tolist() == [6] * 4


def test_pad_puts_zeros_after_the_shorter_encoder():
    encoder = make(encoders={"speech": FAST | {"layers": [0]}, "audio": FAST | {"layers": [1]}}, align="pad")
    speech, audio = torch.randn(2, 1, 9, 8), torch.randn(2, 1, 6, 8)
    encoded = {"speech": (speech, torch.tensor([9, 9])), "audio": (audio, torch.tensor([6, 6]))}
    features, frames = encoder.join(encoded)
    expected = torch.zeros(2, 9, 16)
    expected[..., :8], expected[:, :6, 8:] = speech[:, 0], audio[:, 0]
    assert frames.tolist() == [9, 9]
    assert torch.equal(features[:, 0], expected)


def test_any_subset_can_be_trained():
    encoder = make()
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, _ in encoder.named_parameters()}
    assert names == {"encoders.fast", "encoders.slow"}
    encoder.encoders["fast"].requires_grad_(False)
    encoder(torch.randn(1, 8000), torch.tensor([8000]))[0].square().sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert any(name.startswith("encoders.slow.encoder.layers") for name in trained)
    assert not any(name.startswith("encoders.fast") for name in trained)


def test_identity_contains_those_of_the_encoders():
    base = make().identity()
    assert base["encoders"]["slow"]["pool"] == 4
    assert make(align="linear").identity() != make(grid="slow").identity() != base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoders": {"one": FAST}}, "two encoders or more"),
        ({"align": "repeat"}, "nearest, linear, pad"),
        ({"align": "pad"}, "one frame rate"),
        ({"grid": "quick"}, r"\['fast', 'slow'\]"),
        ({"encoders": {"fast": FAST, "slow": {"type": "bets"}}}, "did you mean 'beats'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_encoders_must_have_names():
    with pytest.raises(ConfigError, match="must name two"):
        Fused([FAST, SLOW])
