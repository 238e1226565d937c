"""Extraction: every distinct clip once, whatever the batches, the ranks and the interruptions; bad files are listed."""

import json

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from audiolm_lite.audio import AudioError, read_audio
from audiolm_lite.features.extract import ExtractionError, Summary, extract, feature_key
from audiolm_lite.features.store import FeatureStore, FeatureStoreError


class ToyEncoder(nn.Module):
    """Two layers of 100-ms frames holding 1600 samples each; takes up to 2 s and counts what it is asked for."""

    frame_seconds = 0.1

    def __init__(self, fail_after=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seconds, self.fail_after = [], fail_after

    def identity(self):
        return {"type": "toy"}

    def num_frames(self, samples):
        if samples > 32000:
            raise ValueError("longer than 2 s")
        return -(-samples // 1600)

    def forward(self, waveforms, lengths):
        assert not self.training and not torch.is_grad_enabled()
        if len(self.seconds) == self.fail_after:
            raise KeyboardInterrupt
        self.seconds.append(waveforms.numel() / 16000)
        frames = -(-lengths // 1600)
        padded = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % 1600)).unflatten(1, (-1, 1600))
        return self.scale * torch.stack([padded, -padded], dim=1), frames


@pytest.fixture
def corpus(tmp_path):
    """Twelve clips of 0.1 to 1.2 s, one row each and a second task for the first."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", generator.uniform(-0.5, 0.5, 1600 * (i + 1)), 16000)
        rows.append({"id": str(i), "audio": f"{i}.wav", "start": 0.0, "duration": None})
    rows[5]["duration"] = 0.6
    return tmp_path, [*rows, {**rows[0], "id": "again"}]


def check(folder, corpus, count=12):
    root, rows = corpus
    store = FeatureStore(folder, {"type": "toy"})
    assert len(store) == count
    for row in rows:
        samples = read_audio(root / row["audio"], row["start"], row["duration"])
        features = store[feature_key(row)].float()
        assert features.shape == (2, -(-len(samples) // 1600), 1600)
        np.testing.assert_allclose(features[0].flatten()[: len(samples)], samples, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_clip_is_stored_once(tmp_path, corpus, workers):
    root, rows = corpus
    encoder = ToyEncoder()
    summary = extract(rows, encoder, tmp_path / "f", audio_root=root, batch_seconds=2.5, workers=workers)
    assert summary == Summary(stored=12, skipped=0, rejected=0)
    assert 2 < len(encoder.seconds) < 12 and max(encoder.seconds) <= 2.5
    check(tmp_path / "f", corpus)
    assert not (tmp_path / "f" / "rejected.jsonl").exists()


def test_a_clip_longer_than_the_batch_goes_alone(tmp_path, corpus):
    encoder = ToyEncoder()
    extract(corpus[1], encoder, tmp_path / "f", audio_root=corpus[0], batch_seconds=0.05)
    assert len(encoder.seconds) == 12
    check(tmp_path / "f", corpus)


def test_an_interrupted_extraction_goes_on(tmp_path, corpus):
    root, rows = corpus
    with pytest.raises(KeyboardInterrupt):
        extract(rows, ToyEncoder(fail_after=2), tmp_path / "f", audio_root=root, batch_seconds=2.5)
    done = len(FeatureStore(tmp_path / "f"))
    assert 0 < done < 12
    assert extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root) == Summary(12 - done, done, 0)
    check(tmp_path / "f", corpus)
    again = ToyEncoder()
    assert extract(rows, again, tmp_path / "f", audio_root=root) == Summary(0, 12, 0)
    assert not again.seconds


def test_ranks_share_the_clips(tmp_path, corpus):
    root, rows = corpus
    parts = [extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root, rank=r, world_size=3) for r in range(3)]
    assert [part.stored for part in parts] == [4, 4, 4]
    check(tmp_path / "f", corpus)


def test_segments_of_a_file_have_their_own_keys():
    row = {"audio": "a/b.flac"}
    assert feature_key(row) == feature_key({**row, "start": 0.0, "duration": None}) == "a/b.flac"
    assert feature_key({**row, "start": 3, "duration": 2}) == feature_key({**row, "start": 3.0, "duration": 2.0})
    segments = [(0.0, 1.5), (1.5, None), (1234.5671, 2.0), (1234.5672, 2.0), (1.5, 2.0)]
    keys = {feature_key({**row, "start": start, "duration": duration}) for start, duration in segments}
    assert len(keys) == len(segments) and "a/b.flac#1.5+2.0" in keys


def test_rejects_are_listed_and_tried_again(tmp_path, corpus):
    root, rows = corpus
    soundfile.write(root / "long.wav", np.zeros(40000), 16000)
    (root / "broken.wav").write_text("no audio")
    bad = [
        {"audio": "missing.wav"},
        {"audio": "broken.wav", "duration": 1.0},  # planned by the manifest, refused by the decoder
        {"audio": "long.wav"},
        {"audio": "1.wav", "start": 0.1, "duration": 0.5},
    ]
    folder = tmp_path / "f"
    summary = extract(rows + bad, ToyEncoder(), folder, audio_root=root, max_rejects=0.5)
    assert summary == Summary(stored=12, skipped=0, rejected=4)
    check(folder, corpus)
    listed = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    reasons = {entry["key"]: entry["reason"] for entry in listed}
    assert set(reasons) == {feature_key(row) for row in bad}
    assert "no such file" in reasons["missing.wav"] and "longer than 2 s" in reasons["long.wav"]
    assert "not readable" in reasons["broken.wav#0.0+1.0"] and "not inside" in reasons["1.wav#0.1+0.5"]

    with pytest.raises(ExtractionError, match=r"4 of 16 clips were rejected.*rejected\.jsonl"):
        extract(rows + bad, ToyEncoder(), folder, audio_root=root)
    soundfile.write(root / "missing.wav", np.zeros(1600), 16000)
    assert extract([*rows, bad[0]], ToyEncoder(), folder, audio_root=root) == Summary(1, 12, 0)
    assert not (folder / "rejected.jsonl").exists()


def test_a_store_of_another_encoder_is_refused(tmp_path, corpus, monkeypatch):
    extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])
    monkeypatch.setattr(ToyEncoder, "identity", lambda self: {"type": "toy", "pool": 2})
    with pytest.raises(FeatureStoreError, match="fingerprint.pool: stored 'nothing', asked 2"):
        extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])


def test_faults_of_the_encoder_are_not_taken_for_bad_audio(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(ToyEncoder, "forward", lambda *args: (_ for _ in ()).throw(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug") as error:
        extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])
    assert not isinstance(error.value, AudioError)
