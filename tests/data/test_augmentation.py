"""Augmentation: draws depend on seed, epoch and clip only, and masks and speeds stay within their settings."""

import pytest
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.augmentation import Augmentation

LAYERS, TIME, DIM = 3, 40, 4


def num_frames(samples):
    """One frame per 160 samples, at most 200 frames."""
    if samples > 200 * 160:
        raise ValueError("too long")
    return samples // 160


def make(live=False, epoch=1, seed=0, **settings):
    augmentation = Augmentation(settings, seed, num_frames if live else None)
    augmentation.epoch = epoch
    return augmentation


def clip(live=False, number=0, samples=16000):
    if live:
        return torch.sin(torch.arange(samples) * 0.3)
    return torch.randn(LAYERS, TIME, DIM, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("live", [False, True])
def test_draws_depend_on_seed_epoch_and_name_only(live):
    def changed(**options):
        augmentation = make(live, **options)
        return [augmentation(clip(live), f"row-{number}") for number in range(8)]

    def same(first, second):
        return all(one.shape == other.shape and torch.equal(one, other) for one, other in zip(first, second))

    first = changed()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert same(first, changed())
    assert torch.equal(torch.get_rng_state(), before)  # the global generator, which dropout uses, is unchanged
    assert not same(first, changed(epoch=2)) and not same(first, changed(seed=1))
    assert not same(first, [first[0]] * 8)
    assert same(changed(epoch=None), [clip(live)] * 8)  # before training starts


def test_masked_values_are_the_mean_and_at_least_one_layer_is_kept():
    share = 0.2
    for number in range(8):
        plain = clip(number=number)
        masked = make(time_masks=1, time_share=share, layer_mask=0.5)(plain, str(number))
        changed = (plain != masked).any(dim=-1)  # [L, T]
        mean = plain.mean(dim=1, keepdim=True).expand_as(plain)
        torch.testing.assert_close(masked[changed], mean[changed])
        masked_layers = changed.all(dim=1)
        assert not masked_layers.all()
        assert all(layer.sum() <= share * TIME + 1 for layer in changed[~masked_layers])
    assert torch.equal(make(time_masks=0, layer_mask=0.0)(plain, "row"), plain)


def test_speeds_change_the_length_if_the_encoder_accepts_it():
    lengths = {len(make(live=True, epoch=epoch)(clip(live=True), "row")) for epoch in range(12)}
    assert lengths == {17778, 16000, 14546}
    longest = clip(live=True, samples=200 * 160)
    assert len(make(live=True, speeds=[90])(longest, "row")) == len(longest)


def test_masks_of_live_audio_silence_and_filter():
    plain = clip(live=True)
    changed = [make(live=True, epoch=e, speeds=[100], frequency_masks=0)(plain, "row") for e in range(8)]
    assert any((one == 0).sum() > 100 for one in changed)
    assert all(torch.equal(one[one != 0], plain[one != 0]) for one in changed)
    filtered = [make(live=True, epoch=e, speeds=[100], time_masks=0)(plain, "row") for e in range(8)]
    assert not all(torch.equal(one, plain) for one in filtered)


def test_settings_of_the_other_kind_of_clip_are_refused():
    with pytest.raises(ConfigError, match="no entry 'speeds' for stored features; it takes time_masks, time_share"):
        make(speeds=[90])
    with pytest.raises(ConfigError, match="no entry 'layer_mask' for live audio"):
        make(live=True, layer_mask=0.1)
