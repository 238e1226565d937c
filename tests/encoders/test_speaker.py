"""Speaker embeddings against SpeechBrain's own pipeline, segments and checkpoints."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.speaker import SpeakerEncoder
from tests.tiny import SPEAKER


def tiny(**arguments):
    encoder = build("encoders", {"type": "speaker", "source": None, **SPEAKER, **arguments}).eval()
    for buffer in encoder.model.buffers():  # statistics of batch norm
        buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return encoder


def test_segments_equal_speechbrain_on_each_of_them():
    encoder = tiny()
    wave = 0.1 * torch.randn(16000)
    features, frames = encoder(wave[None], torch.tensor([16000]))
    assert frames.tolist() == [3] and features.shape == (1, 1, 3, 12)
    mel, centre = Fbank(n_mels=20), InputNormalization(norm_type="sentence", std_norm=False)
    for result, segment in zip(features[0, 0], (wave[:6400], wave[6400:12800], wave[-6400:])):
        expected = encoder.model(centre(mel(segment[None]), torch.ones(1)))
        torch.testing.assert_close(result, expected[0, 0], rtol=1e-4, atol=1e-5)


def test_published_checkpoints_are_read_without_their_yaml(tmp_path):
    published = tiny()
    torch.save(published.model.state_dict(), tmp_path / "embedding_model.ckpt")
    (tmp_path / "hyperparams.yaml").write_text("x: !apply:os.abort []\n")
    loaded = build("encoders", {"type": "speaker", "source": str(tmp_path), **SPEAKER})
    assert loaded.identity() == published.identity()
    with pytest.raises(ConfigError, match="does not fit channels"):
        SpeakerEncoder(str(tmp_path))
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(ConfigError, match="not a valid checkpoint of tensors"):
        build("encoders", {"type": "speaker", "source": str(tmp_path), **SPEAKER})


def test_training_keeps_the_statistics_of_batch_norm():
    encoder = tiny().train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(torch.randn(2, 7000), torch.tensor([7000, 6400]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"segment_seconds": 0.02}, "at least 0.03"), ({"dilations": [1]}, "the same number of entries")],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**arguments)
