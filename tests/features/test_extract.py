"""Extraction: every distinct clip once, for any batches, ranks and interruptions; bad files are listed."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from audiolm_lite.audio.long_audio import LongAudio, Segment
from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.features import writer as writer_module
from audiolm_lite.features.extract import ExtractionError, Summary, extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import FeatureStoreError


class ToyEncoder(nn.Module):
    """Two layers of 100-ms frames holding 1600 samples each; accepts up to 2 s and counts the seconds it encodes."""

    frame_seconds, max_seconds = 0.1, 2.0

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


def test_a_clip_longer_than_the_batch_is_encoded_alone(tmp_path, corpus):
    encoder = ToyEncoder()
    extract(corpus[1], encoder, tmp_path / "f", audio_root=corpus[0], batch_seconds=0.05)
    assert len(encoder.seconds) == 12
    check(tmp_path / "f", corpus)


def test_an_interrupted_extraction_continues(tmp_path, corpus):
    root, rows = corpus
    with pytest.raises(KeyboardInterrupt):
        extract(rows, ToyEncoder(fail_after=2), tmp_path / "f", audio_root=root, batch_seconds=2.5)
    done = len(FeatureStore(tmp_path / "f"))
    assert 0 < done < 12
    again = ToyEncoder()
    assert extract(rows, again, tmp_path / "f", audio_root=root, batch_seconds=2.5) == Summary(12 - done, done, 0)
    every = ToyEncoder()
    extract(rows, every, tmp_path / "g", audio_root=root, batch_seconds=2.5)
    assert again.seconds == every.seconds[2:]  # the same batches, except the finished ones
    check(tmp_path / "f", corpus)
    again = ToyEncoder()
    assert extract(rows, again, tmp_path / "f", audio_root=root) == Summary(0, 12, 0)
    assert not again.seconds


def test_clips_are_split_across_ranks(tmp_path, corpus):
    root, rows = corpus
    ranks = [extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root, rank=r, world_size=3) for r in range(3)]
    assert [summary.stored for summary in ranks] == [4, 4, 4]
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
        {"audio": "broken.wav", "duration": 1.0},  # planned from the manifest's duration, then not decodable
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


def test_a_store_of_another_encoder_is_an_error(tmp_path, corpus, monkeypatch):
    extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])
    monkeypatch.setattr(ToyEncoder, "identity", lambda self: {"type": "toy", "pool": 2})
    with pytest.raises(FeatureStoreError, match="fingerprint.pool: stored 'nothing', requested 2"):
        extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])


def test_errors_of_the_encoder_are_not_reported_as_bad_audio(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(ToyEncoder, "forward", lambda *args: (_ for _ in ()).throw(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug") as error:
        extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0])
    assert not isinstance(error.value, AudioError)


@pytest.fixture
def long_clip(corpus):
    """The corpus and a clip of 5 s, whose samples show their position."""
    root, rows = corpus
    soundfile.write(root / "long.wav", np.linspace(-0.5, 0.5, 80000), 16000, subtype="FLOAT")
    return root, [*rows, {"audio": "long.wav"}]


@pytest.mark.parametrize("rule, frames", [("crop", 20), ("random_crop", 20), ("chunk", 50)])
def test_long_audio(tmp_path, long_clip, rule, frames):
    root, rows = long_clip
    summary = extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root, dtype="float32", long_audio=rule, seed=3)
    assert summary == Summary(13, 0, 0, cut=1)
    features = FeatureStore(tmp_path / "f")["long.wav"]
    assert features.shape == (2, frames, 1600)
    [entry] = map(json.loads, (tmp_path / "f" / "long_audio.jsonl").read_text().splitlines())
    samples, first = features[0].flatten(), 0
    if rule == "chunk":
        assert entry == {"key": "long.wav", "seconds": 5.0, "chunks": 3}
    else:
        first = round(entry["kept_from"] * 16000)
        assert entry["kept"] == 2.0 and (first > 0) == (rule == "random_crop")
    expected = torch.linspace(-0.5, 0.5, 80000)[first : first + len(samples)]
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-6)

    # Only seed and key determine a crop, not the other clips. Another seed or rule needs another store.
    extract(rows[-1:], ToyEncoder(), tmp_path / "g", audio_root=root, dtype="float32", long_audio=rule, seed=3)
    assert torch.equal(FeatureStore(tmp_path / "g")["long.wav"], features)
    again = extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root, dtype="float32", long_audio=rule, seed=3)
    assert again == Summary(0, 13, 0) and (tmp_path / "f" / "long_audio.jsonl").exists()
    with pytest.raises(FeatureStoreError, match=f"long_audio: stored '{rule}.*', requested 'reject'"):
        extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root, dtype="float32")


def test_random_crops_differ_by_seed_and_key():
    rules = [LongAudio("random_crop", ToyEncoder(), seed) for seed in range(2)]
    starts = {rule.plan(key, Segment(key, 1.0, 9.0), Path()).segment.start for rule in rules for key in "abcdefgh"}
    assert len(starts) == 16 and min(starts) >= 1 and max(starts) <= 8


@pytest.mark.parametrize("samples, lengths", [
    (32000, [32000]),
    (32001, [17600, 14401]),  # one sample could not be encoded alone; divided between two frames
    (64000, [32000, 32000]),
    (64000 + 15999, [32000, 24000, 23999]),
    (64000 + 16000, [32000, 32000, 16000]),
])  # fmt: skip
def test_chunks_contain_every_sample_once(samples, lengths):
    rule = LongAudio("chunk", ToyEncoder())
    assert rule.chunk_lengths(samples) == lengths and sum(lengths) == samples
    assert all(length % 1600 == 0 for length in lengths[:-1])


def test_running_out_of_memory_halves_the_batch(tmp_path, corpus, caplog):
    class Small(ToyEncoder):
        def forward(self, waveforms, lengths):
            if waveforms.numel() > 1.05 * 16000:
                raise torch.OutOfMemoryError("no")
            return super().forward(waveforms, lengths)

    root, rows = corpus
    encoder = Small()
    assert extract(rows, encoder, tmp_path / "f", audio_root=root, batch_seconds=4, max_rejects=1) == Summary(10, 0, 2)
    assert [record.message for record in caplog.records if "ran out of memory on 3 clips" in record.message]
    assert sum("ran out of memory" in record.message for record in caplog.records) == 1
    listed = (tmp_path / "f" / "rejected.jsonl").read_text()
    assert listed.count("too large for the memory of cpu even alone") == 2 and '"11.wav"' in listed
    check(tmp_path / "f", (root, [row for row in rows if row["audio"] not in ("10.wav", "11.wav")]), count=10)


def test_a_stored_neighbour_that_no_longer_fits_the_memory_is_not_rejected(tmp_path, corpus):
    class Small(ToyEncoder):
        def forward(self, waveforms, lengths):
            if waveforms.numel() > 1.05 * 16000:
                raise torch.OutOfMemoryError("no")
            return super().forward(waveforms, lengths)

    root, rows = corpus
    options = {"audio_root": root, "batch_seconds": 100}
    others = [row for row in rows if row["audio"] != "0.wav"]
    assert extract(others, ToyEncoder(), tmp_path / "f", **options) == Summary(11, 0, 0)
    # All clips are in one batch with 0.wav, the only one that is new. Two of them are too large now.
    assert extract(rows, Small(), tmp_path / "f", **options, max_rejects=0) == Summary(1, 11, 0)
    assert not (tmp_path / "f" / "rejected.jsonl").exists()
    check(tmp_path / "f", corpus, count=12)


def test_features_that_cannot_be_stored_are_rejected(tmp_path, corpus):
    class Loud(ToyEncoder):
        def forward(self, waveforms, lengths):
            features, frames = super().forward(waveforms, lengths)
            features[lengths == 1600 * 4] = 1e6
            return features, frames

    summary = extract(corpus[1], Loud(), tmp_path / "f", audio_root=corpus[0], max_rejects=0.2)
    assert summary == Summary(11, 0, 1)
    assert "3.wav" in (tmp_path / "f" / "rejected.jsonl").read_text()


def test_a_rejected_clip_does_not_repeat_its_batch(tmp_path, corpus):
    rows = [*corpus[1], {"audio": "missing.wav", "duration": 1.0}]
    encoder = ToyEncoder()
    for expected in (Summary(12, 0, 1), Summary(0, 12, 1)):
        assert extract(rows, encoder, tmp_path / "f", audio_root=corpus[0], max_rejects=1) == expected
        calls = len(encoder.seconds)
        encoder = ToyEncoder()
    assert calls == 0


def test_one_process_after_several_finds_all_and_lists_their_rejects(tmp_path, corpus):
    root, rows = corpus
    rows = [*rows, {"audio": "missing.wav"}]
    folder, options = tmp_path / "f", {"audio_root": root, "max_rejects": 1}
    for rank in range(3):
        extract(rows, ToyEncoder(), folder, rank=rank, world_size=3, **options)
    assert len(list(folder.glob("rejected-*.jsonl"))) == 1
    encoder = ToyEncoder()
    assert extract(rows, encoder, folder, **options) == Summary(0, 12, 1) and not encoder.seconds
    assert [file.name for file in folder.glob("rejected*")] == ["rejected.jsonl"]
    check(folder, corpus)


def test_a_full_disk_stops_the_extraction_and_keeps_the_store(tmp_path, corpus, monkeypatch):
    root, rows = corpus
    extract(rows[:3], ToyEncoder(), tmp_path / "f", audio_root=root)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(FeatureStoreError, match="No space left on device.*free space"):
        patch.setattr(writer_module, "save_file", full)
        extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root)
    check(tmp_path / "f", (root, rows[:3]), count=3)
    assert extract(rows, ToyEncoder(), tmp_path / "f", audio_root=root) == Summary(9, 3, 0)


def test_progress_shows_rates(tmp_path, corpus, capsys):
    extract(corpus[1], ToyEncoder(), tmp_path / "f", audio_root=corpus[0], batch_seconds=2)
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"features: 100%.*<00:00, 12/12 clips, \S+ clips/s, \S+ audio-hours/hour", last), last


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.sets(st.integers(0, 11), min_size=1),
    batch_seconds=st.floats(0.1, 8),
    padding=st.sampled_from(["exact", "full"]),
)
def test_features_do_not_depend_on_the_batch(tmp_path_factory, corpus, sources, chosen, batch_seconds, padding):
    """For any clips in batches of any size."""
    root, rows = corpus
    encoder = WhisperEncoder(str(sources / "whisper"), padding=padding, pool=2)
    stores = []
    for seconds, some in ((0.01, rows[:12]), (batch_seconds, [rows[i] for i in chosen])):
        folder = tmp_path_factory.mktemp("f")
        extract(some, encoder, folder, audio_root=root, batch_seconds=seconds, dtype="float32")
        stores.append(FeatureStore(folder))
    for key in stores[1]:
        alone, together = stores[0][key], stores[1][key]
        assert (alone - together).abs().max() < 1e-4 * alone.abs().max()
