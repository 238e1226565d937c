"""The channel of a recording: from a manifest through the table, stored features, live audio and tar shards."""

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio.channels import ChannelWarning
from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.config.registry import build
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.data.row_checks import ManifestError
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.features.extract import extract
from audiolm_lite.features.store import FeatureStore
from data_prep.tar import pack

LEFT, RIGHT = (0.1 * np.random.default_rng(seed).standard_normal(16000).astype(np.float32) for seed in (0, 1))


def row(number, **fields):
    common = {"audio": "call.wav", "task": "asr", "instruction": "what", "target": "dog", "dataset": "d"}
    return {"id": str(number), "split": "train", **common, **fields}


@pytest.fixture
def manifest(tmp_path):
    soundfile.write(tmp_path / "call.wav", np.stack([LEFT, RIGHT], axis=1), 16000, subtype="FLOAT")
    other = [{"audio": "call.wav", "channel": 1}]
    rows = [row(0, channel=0), row(1, channel=1, start=0.25), row(2), row(3, channel=0, further_audio=other)]
    write_manifest(tmp_path / "train.jsonl", rows)
    return tmp_path / "train.jsonl"


@pytest.mark.filterwarnings("ignore::audiolm_lite.audio.channels.ChannelWarning")
def test_live_audio_and_stored_features_are_of_the_channel(manifest, tmp_path):
    encoder = build("encoders", {"type": "logmel"}).eval()
    expected = [LEFT, RIGHT[4000:], (LEFT + RIGHT) / 2, LEFT]
    clips = list(select_rows([manifest]).clips())
    live = WaveformSource(encoder.num_frames)
    for (path, clip), samples in zip(clips, expected):
        np.testing.assert_allclose(live.read(path, clip), samples, atol=1e-6)
    assert len({live.identity(*clip) for clip in clips}) == 3
    rows = read_manifest(manifest)
    assert extract(rows, encoder, tmp_path / "features", audio_root=tmp_path, dtype="float32").stored == 4
    stored = FeatureSource(FeatureStore(tmp_path / "features"))
    for (path, clip), samples in zip(clips, expected):
        features, frames = encoder(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        torch.testing.assert_close(stored.read(path, clip), features[0, :, : frames[0]], atol=1e-4, rtol=1e-4)
    assert (stored.frames_of_rows(select_rows([manifest])) > 0).all()
    assert "call.wav#channel=1" in set(stored.store.keys())


def test_shards_keep_the_channels(manifest, tmp_path):
    pytest.importorskip("webdataset")
    pack(manifest, tmp_path / "shards", shards=1)
    rows = select_rows([tmp_path / "shards/manifest.jsonl"])
    by_id = {rows[index]["id"]: clip for index, (_, clip) in enumerate(rows.clips())}
    clip = by_id["1"]
    samples = read_audio(tmp_path / "shards" / clip["audio"], clip["start"], channel=clip["channel"])
    np.testing.assert_allclose(samples, RIGHT[4000:], atol=1e-6)


@pytest.mark.parametrize("channel", [-1, 0.5, "left", True, [0, 1]])
def test_channels_that_are_no_numbers_are_refused(tmp_path, channel):
    with pytest.raises(ManifestError, match='field "channel": .*write the number of a channel, from 0, or null'):
        write_manifest(tmp_path / "a.jsonl", [row(0, channel=channel)])
    with pytest.raises(ManifestError, match='field "further_audio"'):
        write_manifest(tmp_path / "a.jsonl", [row(0, further_audio=[{"audio": "a.wav", "channel": channel}])])


def test_a_channel_that_the_file_lacks_is_an_error(manifest):
    with pytest.raises(AudioError, match=r"call.wav: channel 2: it has 2 channels, 0 to 1; correct the channel"):
        read_audio(manifest.parent / "call.wav", channel=2)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([LEFT, -LEFT], "its channels cancel each other: their mean has 0 % of their energy"),
        ([LEFT, -0.8 * LEFT], "its channels cancel each other: their mean has 1 % of their energy"),
        ([LEFT, RIGHT], "its channels differ"),
        ([LEFT, 0 * LEFT], "its channels differ"),
        ([LEFT, RIGHT, LEFT[::-1]], "its channels differ"),
        ([LEFT, LEFT], None),
        ([LEFT, 0.5 * LEFT], None),
        ([LEFT, LEFT + 0.5 * RIGHT], None),
        ([0 * LEFT, 0 * LEFT], None),
        ([LEFT], None),
    ],
)
def test_a_mean_that_loses_sound_warns(tmp_path, recwarn, channels, message):
    soundfile.write(tmp_path / "a.wav", np.stack(channels, axis=1), 16000, subtype="FLOAT")
    read_audio(tmp_path / "a.wav")
    found = [str(warning.message) for warning in recwarn if warning.category is ChannelWarning]
    assert len(found) == (message is not None) and all(message in text for text in found)
    recwarn.clear()
    read_audio(tmp_path / "a.wav", channel=0)
    assert not [warning for warning in recwarn if warning.category is ChannelWarning]
