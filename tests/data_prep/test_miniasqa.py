"""MiniASQA: reproducible bytes, labels that describe the sound, no test data in training."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_lite.audio.level import level_dbfs
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed.partition import Partition
from data_prep.miniasqa import corpus, prepare
from data_prep.miniasqa.corpus import RATE, STYLES, make_plans, render, render_shard
from data_prep.miniasqa.espeak import Espeak
from data_prep.miniasqa.questions import PHRASES, captions, rows_for, spoken_labels
from data_prep.miniasqa.sentences import make_sentence, split_of, vocabulary
from data_prep.miniasqa.sounds import SOUNDS, SoundEvent, synthesise
from data_prep.miniasqa.voices import ACCENTS, make_speakers


def digest(clips):
    return [(clip.plan.name, hashlib.sha256(clip.samples.tobytes()).hexdigest()) for clip in clips]


def measures(clips):
    return [(clip.plan, clip.samples, clip.words, clip.phonemes) for clip in clips]


def fundamental(samples, rate):
    """Median pitch in Hz, by autocorrelation, of the loud and voiced windows."""
    pitches = []
    for start in range(0, len(samples) - 1024, 512):
        window = samples[start : start + 1024].astype(float)
        if np.sqrt((window**2).mean()) < 1000:
            continue
        correlation = np.correlate(window, window, "full")[1023:]
        lag = rate // 400 + int(correlation[rate // 400 : rate // 60].argmax())
        if correlation[lag] > 0.5 * correlation[0]:
            pitches.append(rate / lag)
    return float(np.median(pitches))


@pytest.fixture(scope="module")
def rendered():
    plans = make_plans(5, "test", speech=12, sound=4, mixture=4)
    return [item for shard in render(plans, measures, processes=1) for item in shard]


def test_the_same_seed_gives_the_same_bytes(rendered):
    plans = make_plans(5, "test", speech=12, sound=4, mixture=4)
    again = [item for shard in render(plans, digest, processes=2) for item in shard]
    assert again == [(plan.name, hashlib.sha256(samples.tobytes()).hexdigest()) for plan, samples, _, _ in rendered]
    assert make_plans(6, "test", 12, 4, 4) != plans


def test_words_and_phonemes_are_inside_the_clip_and_in_order(rendered):
    for plan, samples, words, phonemes in rendered:
        assert samples.dtype == np.int16 and np.abs(samples).max() > 3000
        assert [word for word, _, _ in words] == (plan.text.split() if plan.text else [])
        for timed in (words, phonemes):
            starts = [start for _, start, _ in timed]
            assert starts == sorted(starts)
            assert all(0 <= start <= end <= len(samples) / RATE for _, start, end in timed)


def test_gender_agrees_with_the_pitch():
    """The pitch of every neutral male voice is lower than that of every female one."""
    from data_prep.miniasqa.espeak import Espeak

    speakers = make_speakers("test")[:16]
    espeak = Espeak(speakers)
    pitch = {"male": [], "female": []}
    for speaker in speakers:
        utterance = espeak.say(speaker, "the old man went to the market", STYLES["neutral"])
        pitch[speaker.gender].append(fundamental(utterance.samples, utterance.rate))
    assert max(pitch["male"]) < 165 < 195 < min(pitch["female"])


def test_older_voices_speak_more_slowly():
    speakers = make_speakers("train")
    ages, rates = [s.age for s in speakers], [s.rate for s in speakers]
    assert np.corrcoef(ages, rates)[0, 1] < -0.9


def test_the_number_of_voices_is_not_limited():
    """espeak-ng lists 349 languages and variants; an accent that is not listed would not be found."""
    speakers = [replace(make_speakers("test")[0], name=f"voice{i}", accent=ACCENTS[-1]) for i in range(400)]
    espeak = Espeak(speakers)
    for speaker in (speakers[0], speakers[-1]):
        assert len(espeak.say(speaker, "hello", STYLES["neutral"]).samples) > espeak.rate / 10


@pytest.mark.parametrize("clips", ["{trian: {speech: 1, sound: 0, mixture: 0}}", "{train: {speech: 1}}", "{train: 3}"])
def test_wrong_numbers_of_clips_are_refused(tmp_path, clips):
    (tmp_path / "prepare.yaml").write_text("seed: 1\nencoder: {type: logmel}\n")
    folders = ["--data_folder", str(tmp_path / "data"), "--feature_folder", str(tmp_path / "features")]
    with pytest.raises(
        ConfigError, match="clips: .* must be one of train, valid, test with a number of clips for each"
    ):
        prepare.main([str(tmp_path / "prepare.yaml"), *folders, f"--clips={clips}"])


def test_no_test_voice_and_no_test_sentence_is_in_training():
    names = {split: {s.name for s in make_speakers(split)} for split in ("train", "valid", "test")}
    assert not names["train"] & names["test"] and not names["train"] & names["valid"]
    train = make_plans(2, "train", speech=3000, sound=0, mixture=500)
    test = make_plans(1, "test", speech=300, sound=0, mixture=50)
    assert not {p.text for p in train} & {p.text for p in test}
    assert {p.speaker.name for p in train} <= names["train"]
    assert all(split_of(p.text) == "test" for p in test)


def test_every_word_of_a_sentence_is_in_the_vocabulary():
    words, rng = set(vocabulary()), np.random.default_rng(3)
    for _ in range(2000):
        text, spoken = make_sentence(rng)
        assert set(text.split()) <= words
        assert len(text.split()) == len(spoken.split())


@pytest.mark.parametrize("label", list(SOUNDS))
def test_sounds_are_finite_and_follow_their_trend(label):
    for trend, sign in (("rising", 1), ("fading", -1)):
        samples = synthesise(SoundEvent(label, True, trend, 3.0), np.random.default_rng(0))
        assert samples.shape == (48000,) and np.isfinite(samples).all()
        assert np.abs(samples).max() == pytest.approx(1.0, abs=1e-5)
        first, last = np.square(samples[:16000]).mean(), np.square(samples[-16000:]).mean()
        assert sign * (last - first) > 0


def test_every_clip_has_its_questions_and_five_different_captions():
    for plan in make_plans(4, "train", speech=40, sound=28, mixture=28):
        rows = rows_for(plan, np.random.default_rng(1))
        tasks = {row["task"] for row in rows}
        assert "caption" in tasks
        assert {"asr", "gender", "emotion", "age"} <= tasks or plan.kind == "sound"
        assert "sound_class" in tasks or plan.kind != "sound"
        assert len(set(captions(plan))) == 5
        for row in rows:
            assert row["target"] in row["references"]
            if "label" in row:
                assert row["label"] in row["target"]
        assert len(spoken_labels(plan)) >= 2


def test_clips_without_speech_have_an_empty_transcript():
    """From below the level at which the model is asked to loud; other clips do not depend on how many there are."""
    counts = {"speech": 2, "sound": 14, "mixture": 2}
    plans = make_plans(1, "test", **counts, noise=40)
    assert plans[:18] == make_plans(1, "test", **counts)
    noise = [plan for plan in plans if plan.kind == "noise"]
    assert len(noise) == 40 and not any(spoken_labels(plan) for plan in noise)
    clips = render_shard(noise)
    levels = [level_dbfs(torch.from_numpy(clip.samples / 32768)) for clip in clips]
    assert min(levels) < -65 and max(levels) > -25 and all(not clip.words for clip in clips)
    assert all(len(clip.samples) == int(clip.plan.seconds * RATE) for clip in clips)
    for plan in plans:
        rows = rows_for(plan, np.random.default_rng(1), no_speech=True)
        silent = [row for row in rows if row["task"] == "no_speech"]
        assert len(silent) == (plan.kind in ("sound", "noise")) and all(row["target"] == "" for row in silent)
        if plan.kind != "noise":
            assert [row for row in rows if row["task"] != "no_speech"] == rows_for(plan, np.random.default_rng(1))


def test_a_folder_with_other_numbers_of_clips_is_refused(tmp_path):
    sounds, alone = {"speech": 0, "sound": 3, "mixture": 0}, Partition(0, 1, finishes=True)
    rows = prepare.render_split(tmp_path, "valid", 1, sounds, 1, alone)
    assert prepare.render_split(tmp_path, "valid", 1, sounds, 1, alone) == rows
    for other in ({**sounds, "sound": 4}, {**sounds, "noise": 2}):
        with pytest.raises(ConfigError, match="other numbers of clips"):
            prepare.render_split(tmp_path, "valid", 1, other, 1, alone)


def test_every_sound_has_five_phrases():
    assert set(PHRASES) == set(SOUNDS)
    assert all(len(set(phrases)) == 5 for phrases in PHRASES.values())


def test_partitions_render_the_bytes_of_one_run(tmp_path, monkeypatch):
    """In any order; the run of all clips renders what is missing and returns all rows."""
    monkeypatch.setattr(prepare, "SHARD", 2)
    monkeypatch.setattr(corpus, "SHARD", 2)
    counts = {"speech": 3, "sound": 3, "mixture": 1}

    def render(folder, *partitions):
        for rank, world_size in partitions:
            partition = Partition(rank, world_size, finishes=world_size == 1)
            rows = prepare.render_split(folder, "valid", 1, counts, 1, partition)
        return rows, {path.name: path.read_bytes() for path in (folder / "audio/valid").iterdir()}

    alone = render(tmp_path / "alone", (0, 1))
    assert len(alone[1]) == 7 + 4
    assert render(tmp_path / "all parts", (1, 2), (0, 2), (0, 1)) == alone
    assert render(tmp_path / "one part is missing", (2, 3), (0, 3), (0, 1)) == alone
