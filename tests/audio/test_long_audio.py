"""One rule for long clips: the same features from the store, from live audio and through the model."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio.long_audio import LongAudio
from audiolm_lite.config.registry import build
from audiolm_lite.data.clip_sources import WaveformSource
from audiolm_lite.features.extract import extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore

SECONDS = {"short.wav": 1.5, "long.wav": 5.3, "edge.wav": 4.4}


@pytest.fixture
def encoder():
    """Frames of 10 ms from clips of at most two seconds."""
    encoder = build("encoders", {"type": "logmel", "padding": "exact"}).eval()
    encoder.max_seconds = 2.0
    return encoder


@pytest.fixture
def folder(tmp_path):
    for number, (name, seconds) in enumerate(SECONDS.items()):
        samples = 0.1 * np.random.default_rng(number).standard_normal(round(16000 * seconds))
        soundfile.write(tmp_path / name, samples, 16000, subtype="FLOAT")
    return tmp_path


@pytest.mark.parametrize("name", ["crop", "random_crop", "chunk"])
def test_live_audio_has_the_features_of_the_store(encoder, folder, name):
    rows = [{"audio": audio, "start": start, "duration": None} for audio in SECONDS for start in (0.0, 0.25)]
    options = {"audio_root": folder, "dtype": "float32", "long_audio": name, "seed": 7}
    assert extract(rows, encoder, folder / "features", **options).stored == len(rows)
    store, rule = FeatureStore(folder / "features"), LongAudio(name, encoder, seed=7)
    source = WaveformSource(rule.num_frames, rule)
    clips = [source.read(folder / "train.jsonl", row) for row in rows]
    lengths = torch.tensor([len(clip) for clip in clips])
    features, frames = rule.encode(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths)
    for row, clip, count in zip(rows, features, frames.tolist()):
        torch.testing.assert_close(clip[:, :count], store[feature_key(row)], atol=1e-4, rtol=1e-4)
    assert frames.tolist() == rule.num_frames(lengths).tolist()
    assert [source.length(folder / "train.jsonl", row) for row in rows] == lengths.tolist()
    assert (frames > 210).any() == (name == "chunk")


def test_a_clip_that_is_rejected_is_an_error_live_too(encoder, folder):
    encoder.num_frames = lambda samples, count=encoder.num_frames: count(samples) if samples <= 32000 else 1 / 0
    rule = LongAudio("reject", encoder)
    source = WaveformSource(rule.num_frames, rule)
    row = {"audio": "long.wav", "start": 0.0, "duration": None}
    assert source.length(Path(folder / "train.jsonl"), row) == round(5.3 * 16000)
    with pytest.raises(ZeroDivisionError):
        source.frames(source.length(folder / "train.jsonl", row))
