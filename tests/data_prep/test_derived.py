"""Derived clips: the same audio for the same seed, levels, order of joined transcripts, and rooms as they should be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.audio.reading import SAMPLE_RATE, AudioError, read_audio
from data_prep.clips import Clip, Label
from data_prep.derived import (
    join_clips,
    make_silence,
    mix_sounds,
    perturb_clips,
    samples_of,
    write_derived,
)
from data_prep.signals import active_level, add_noise, change_speed, coloured_noise, in_room, set_peak


def speech(name: str, seconds: float, level: float, **fields) -> Clip:
    """A clip of constant samples, so that its place in a longer one can be found."""
    wave = np.full(round(seconds * SAMPLE_RATE), level, np.float32)
    return Clip("d", name, Path(name), "train", "s", speaker="s", text=f"text {name}", render=lambda: wave, **fields)


def sound(name: str, wave: np.ndarray) -> Clip:
    labels = (Label("sound_class", name),)
    return Clip("e", name, Path(name), "train", name, labels=labels, captions=(f"{name} falls",), render=lambda: wave)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(seconds=st.lists(st.floats(0.3, 30.0), min_size=2, max_size=25), seed=st.integers(0, 5))
def test_joined_clips_contain_their_parts_in_the_order_of_the_transcript(seconds, seed):
    clips = [speech(str(n), length, (n + 1) / 100) for n, length in enumerate(seconds)]
    joined = list(join_clips(clips, 1.0, Path("derived"), seed))
    used = []
    for clip in joined:
        wave = samples_of(clip)
        assert 4.0 <= len(wave) / SAMPLE_RATE <= 25.0 + 1e-3
        levels = wave[np.flatnonzero(np.diff(wave, prepend=0.0))]
        heard = [round(100 * level) - 1 for level in levels if level > 0]
        assert clip.text == " ".join(f"text {number}" for number in heard) and len(heard) > 1
        assert wave[0] > 0 and wave[-1] > 0  # no pause at the ends
        used += heard
    assert len(set(used)) == len(used)  # each clip once


def test_most_clips_are_joined():
    clips = [speech(str(n), 3.5, 0.1) for n in range(400)]
    for share in (0.5, 1.0):
        parts = sum(clip.text.count("text") for clip in join_clips(clips, share, Path("derived"), seed=1))
        assert 0.9 * share <= parts / len(clips) <= share


def test_only_clips_of_one_speaker_dataset_and_split_are_joined():
    kinds = [{"speaker": "t"}, {"dataset": "f"}, {"split": "valid"}, {"text": None}, {"speaker": "", "group": "g"}]
    clips = [replace(speech("a", 5.0, 0.1), **kind) for kind in kinds]
    assert not list(join_clips(clips, 1.0, Path("derived"), seed=1))
    twice = [replace(clip, id=f"{clip.id}2") for clip in clips]
    assert len(list(join_clips([*clips, *twice], 1.0, Path("derived"), seed=1))) == 4  # all but those without text


def test_unreadable_clips_are_not_joined(tmp_path):
    missing = replace(speech("missing", 5.0, 0.1), audio=tmp_path / "missing.wav", render=None)
    joined = list(join_clips([speech("a", 5.0, 0.1), missing, speech("b", 5.0, 0.1)], 1.0, tmp_path, seed=1))
    assert all("missing" not in clip.text for clip in joined)
    with pytest.raises(AudioError, match="missing.wav"):
        samples_of(missing)


def test_the_seed_decides_name_and_samples(tmp_path):
    clips = [speech(str(n), 3.0 + n, 0.1) for n in range(4)]
    rain = sound("rain", np.random.default_rng(0).uniform(-0.1, 0.1, 80000).astype(np.float32))
    dog = sound("dog", tone(300.0))

    def derive(seed: int) -> list[Clip]:
        return [
            *join_clips(clips, 1.0, tmp_path, seed),
            *perturb_clips(clips, [rain, dog], 2.0, tmp_path, seed),
            *mix_sounds([rain, dog], 4, tmp_path, seed),
            *make_silence("train", 4, tmp_path, seed),
        ]

    first, again, other = derive(1), derive(1), derive(2)
    assert [(clip.audio, clip.captions) for clip in first] == [(clip.audio, clip.captions) for clip in again]
    assert not {clip.audio for clip in first} & {clip.audio for clip in other}
    assert len({clip.audio for clip in first}) == len(first)
    for clip, same in zip(first, again):
        np.testing.assert_array_equal(samples_of(clip), samples_of(same))
        assert samples_of(clip).dtype == np.float32


def test_a_replaced_source_gives_another_name(tmp_path):
    file = tmp_path / "a.wav"
    clip = Clip("d", "a", file, "train", "s", text="yes")
    names = []
    for seconds in (1.0, 2.0):
        soundfile.write(file, tone(200.0, seconds), SAMPLE_RATE)
        names += [copy.audio for copy in perturb_clips([clip], [], 1.0, tmp_path, seed=1)]
    assert len(set(names)) == 2


def test_perturbed_clips_keep_what_is_known_about_them():
    clips = [speech(str(n), 2.0, 0.1, gender="female", age=30) for n in range(300)]
    rain = sound("rain", tone(100.0))
    results = list(perturb_clips(clips, [rain], 1.0, Path("derived"), seed=1))
    assert {clip.gender for clip in results} == {"female"} and [c.text for c in results] == [c.text for c in clips]
    lengths = np.array([len(samples_of(clip)) for clip in results[:100]]) / (2 * SAMPLE_RATE)
    assert lengths.min() >= 1 / 1.1 - 0.01 and lengths.max() <= 1 / 0.9 + 0.01
    changed = [clip.age is None for clip in results]
    assert changed[:100] == (np.abs(lengths - 1) > 1e-4).tolist() and 100 < sum(changed) < 200
    captioned = [clip.captions for clip in results if clip.captions]
    assert captioned[0][0] == "a woman speaks while rain falls" and 20 < len(captioned) < 100
    assert all(-31 < 20 * np.log10(np.abs(samples_of(clip)).max()) <= 0 for clip in results[:50])
    assert len(list(perturb_clips(clips, [], 0.25, Path("derived"), seed=1))) == pytest.approx(75, abs=25)


def test_perturbed_sounds_keep_labels_and_captions():
    (result,) = perturb_clips([sound("rain", tone(100.0))], [], 1.0, Path("derived"), seed=1)
    assert result.label("sound_class") == "rain" and result.captions == ("rain falls",)


def test_mixtures_contain_both_sounds_with_captions_in_their_order():
    low, high = sound("low", tone(200.0)), sound("high", tone(3000.0))
    for clip in mix_sounds([low, high], 20, Path("derived"), seed=1):
        wave, caption = samples_of(clip), clip.captions[0]
        halves = [np.abs(np.fft.rfft(half)) for half in (wave[:16000], wave[-16000:])]
        loud = [[half[200] > 10, half[3000] > 10] for half in halves]
        if len(wave) == 16000:
            assert "then" not in caption and loud[0] == [True, True]
        else:
            assert loud == (
                [[True, False], [False, True]] if caption.startswith("low") else [[False, True], [True, False]]
            )
        assert not clip.labels and np.abs(wave).max() <= 1.0


def test_one_silent_clip_in_four_is_digital_silence(tmp_path):
    clips = list(make_silence("test", 12, tmp_path, seed=1))
    peaks = [float(np.abs(samples_of(clip)).max()) for clip in clips]
    assert [peak == 0.0 for peak in peaks] == [True, False, False, False] * 3
    assert all(clip.text is None and clip.label("no_speech") == "[no speech]" for clip in clips)
    assert ["silence" in clip.captions[0] for clip in clips] == [peak == 0.0 for peak in peaks]
    assert not {clip.id for clip in clips} & {clip.id for clip in make_silence("train", 12, tmp_path, seed=1)}


def test_writing_keeps_existing_files_and_leaves_nothing_behind_after_an_error(tmp_path):
    clip = replace(speech("a", 1.0, 0.25), audio=tmp_path / "x/a.flac")
    write_derived(clip)
    np.testing.assert_allclose(read_audio(clip.audio).numpy(), samples_of(clip), atol=1e-4)
    before = clip.audio.stat().st_mtime_ns
    write_derived(replace(clip, render=lambda: np.zeros(5, np.float32)))
    assert clip.audio.stat().st_mtime_ns == before

    def fail() -> np.ndarray:
        raise AudioError("b.wav", "truncated")

    with pytest.raises(AudioError):
        write_derived(replace(clip, audio=tmp_path / "x/b.flac", render=fail))
    assert list((tmp_path / "x").iterdir()) == [clip.audio]


@given(ratio=st.floats(-10, 30), gain=st.floats(1e-3, 10))
@settings(deadline=None)
def test_noise_is_added_at_the_ratio_whatever_the_levels(ratio, gain):
    """Pauses in speech or sound change nothing."""
    wave = np.concatenate([tone(440.0), np.zeros(32000, np.float32)])
    noise = np.float32(gain) * tone(1000.0)
    added = add_noise(wave, noise, ratio) - wave
    assert 20 * np.log10(active_level(wave) / active_level(added)) == pytest.approx(ratio, abs=0.1)
    np.testing.assert_array_equal(add_noise(wave, np.zeros(100, np.float32), ratio), wave)
    np.testing.assert_array_equal(add_noise(np.zeros(100, np.float32), noise, ratio), np.zeros(100))


@pytest.mark.parametrize(("slope", "decibels"), [(0.0, 0.0), (0.5, 3.0), (1.0, 6.0)])
def test_noise_falls_by_its_decibels_per_octave(slope, decibels):
    noise = coloured_noise(20 * SAMPLE_RATE, slope, np.random.default_rng(0))
    power = np.square(np.abs(np.fft.rfft(noise[: 1 << 17]))).astype(np.float64)
    octaves = [power[low * 8 : low * 16].mean() for low in (250, 500, 1000)]
    assert 10 * np.log10(octaves[0] / octaves[2]) / 2 == pytest.approx(decibels, abs=0.5)


def test_reverberation_lasts_as_long_as_it_says():
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[100] = 0.5
    response = in_room(click, 0.4, 0.0, np.random.default_rng(0))
    assert len(response) == len(click) and response[100] == pytest.approx(0.5, rel=1e-4)
    assert np.abs(response[:100]).max() < 1e-6  # nothing before the sound
    early, late = (np.square(response[100 + a : 100 + b]).mean() for a, b in ((1, 640), (3200, 3840)))
    assert 10 * np.log10(early / late) == pytest.approx(60 * (3200 - 0) / 6400, abs=2.0)


def test_speed_and_level():
    faster = change_speed(tone(1000.0), 1.1)
    assert np.abs(np.fft.rfft(faster, SAMPLE_RATE)).argmax() == 1100 and len(faster) == round(16000 / 1.1)
    assert change_speed(faster, 1.0) is faster
    assert np.abs(set_peak(faster, -12.0)).max() == pytest.approx(10 ** (-12 / 20), rel=1e-4)
    assert not set_peak(np.zeros(10, np.float32), -12.0).any()
