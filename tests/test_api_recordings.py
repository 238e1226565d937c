"""AudioLM on audio in any form, of any length and with several channels."""

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.api import AudioLM
from audiolm_lite.audio.asked import AskedAudio
from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.inputs import InputError
from audiolm_lite.audio.long_audio import LongAudioWarning
from audiolm_lite.audio.reading import read_audio
from audiolm_lite.audio.windows import audio_windows
from audiolm_lite.config.errors import UserError
from audiolm_lite.data.batching import collate
from audiolm_lite.decoding.recordings import Part
from audiolm_lite.hub.save import save_model


def noise(seconds, seed=0, rate=16000):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.fixture
def model(sources, make_experiment, make_model, monkeypatch):
    """A model whose encoder accepts two seconds, in a folder with recordings."""
    monkeypatch.setattr("audiolm_lite.decoding.bundle.multiplies_bf16", lambda device: False)
    monkeypatch.chdir(sources)
    experiment = make_experiment(lora=False) | {"generation": {"max_new_tokens": 6}}
    experiment |= {"instructions": {"transcribe": "transcribe", "caption": "describe audio"}}
    save_model(make_model(experiment), experiment, sources / "model")
    soundfile.write("short.wav", noise(1.2), 16000, subtype="FLOAT")
    soundfile.write("long.flac", noise(9.5, seed=1, rate=22050), 22050)
    soundfile.write("call.wav", np.stack([noise(1.5, 2), noise(1.5, 3)], axis=1), 16000, subtype="FLOAT")
    return AudioLM.from_pretrained("model", device="cpu", batch_size=2)


def test_every_form_has_the_answer_of_the_file(model):
    answer = model.ask("short.wav", "what dog")
    samples = soundfile.read("short.wav", dtype="float32")[0]
    with open("short.wav", "rb") as file:
        content = file.read()
        forms = [content, file, io.BytesIO(content), samples, torch.from_numpy(samples), (samples, 16000)]
        forms += [{"array": samples, "sampling_rate": 16000}, {"bytes": content, "path": None}, {"path": "short.wav"}]
        for form in forms:
            assert model.ask(form, "what dog") == answer
            assert model.transcribe(form) == model.transcribe("short.wav")
        assert model.ask(forms, "what dog") == [answer] * len(forms)
    assert model.ask(samples, "what dog", sampling_rate=8000) == model.ask((samples, 8000), "what dog")
    for wrong, message in (
        (None, "NoneType is no form of audio"),
        ([[1, 2]], "list of numbers"),
        (3, "int is no form"),
    ):
        for ask in (model.transcribe, model.caption):
            with pytest.raises(InputError, match=message):
                ask(wrong)


@pytest.mark.filterwarnings("error::audiolm_lite.audio.channels.ChannelWarning")
def test_channels_are_chosen_or_answered_on_their_own(model, monkeypatch):
    """The stand-in for the model answers how loud the channel is."""
    soundfile.write("call.wav", np.stack([noise(1.5), 2 * noise(1.5, 1)], axis=1), 16000, subtype="FLOAT")

    def answer(audios, questions, **options):
        heard = [model._hear(clip) for (clip,) in AskedAudio(list(audios)).groups]
        return [Part(0.0, 1.5, f"{samples.abs().mean():.4f}") for samples in heard]

    monkeypatch.setattr(model, "_answer", answer)
    left, right = (f"{gain * np.abs(noise(1.5, seed)).mean():.4f}" for gain, seed in ((1, 0), (2, 1)))
    alone = f"{np.abs(noise(1.2)).mean():.4f}"
    for ask in (model.transcribe, model.caption, lambda *audio, **given: model.ask(*audio, "what", **given)):
        assert [ask("call.wav", channel=channel) for channel in (0, 1)] == [left, right]
        assert ask("call.wav", channel="each") == [left, right]
        assert ask(["call.wav", "short.wav"], channel="each") == [[left, right], [alone]]
        assert ask(["call.wav", "short.wav"], channel=0) == [left, alone]
        with pytest.raises(AudioError, match="call.wav: channel 2: it has 2 channels, 0 to 1"):
            ask("call.wav", channel=2)


def test_a_mean_of_channels_that_differ_warns(model):
    with pytest.warns(UserWarning, match=r"call.wav: its channels differ \(correlation .*channel=0 to 1"):
        model.transcribe("call.wav")
    samples = noise(1.0)
    with pytest.warns(UserWarning, match="its channels cancel each other: their mean has 0 % of their energy"):
        model.ask((np.stack([samples, -samples]), 16000), "what")


def test_a_long_recording_is_transcribed_in_segments(model):
    windows = list(audio_windows("long.flac", 2.0))
    texts = [model.transcribe(window.samples) for window in windows]
    assert len(texts) >= 5 and len(set(texts)) > 1
    first, joined, last = model.transcribe(["short.wav", "long.flac", "short.wav"])
    assert joined == " ".join(texts) and first == last == model.transcribe("short.wav")
    model.transcribe(["short.wav", "long.flac"])
    assert [len(parts) for parts in model.parts] == [1, len(windows)]
    assert [part.text for part in model.parts[1]] == texts
    assert [part.start for part in model.parts[1]] == [window.start for window in windows]
    assert sum(part.seconds for part in model.parts[1]) == pytest.approx(9.5, abs=1e-3)
    assert len(model.stopped) == len(model.transcripts) == 2


def test_other_questions_say_what_they_looked_at(model):
    beginning = read_audio("long.flac", 0.0, 2.0)
    with pytest.warns(LongAudioWarning, match=r"long.flac: the answer is about its first 2 s of 9.5 s"):
        assert model.ask("long.flac", "what dog") == model.ask(beginning, "what dog")
    with pytest.warns(LongAudioWarning, match="a waveform: the answer is about its first 2 s of 5.0 s"):
        model.caption(noise(5.0))
    (part,) = model.parts[0]
    assert (part.start, part.seconds) == (0.0, 2.0)


def test_a_model_that_was_trained_with_chunks_receives_all_of_them(model, recwarn):
    """The model folder records the rule of the training."""
    file = Path("model/audiolm_lite.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"long_audio": "chunk"}))
    chunked = AudioLM.from_pretrained("model", device="cpu")
    assert isinstance(chunked.ask(["long.flac", "short.wav"], "what dog")[0], str)
    assert [part.seconds for (part,) in chunked.parts] == [pytest.approx(9.5, abs=1e-3), 1.2]
    assert not [warning for warning in recwarn if warning.category is LongAudioWarning]
    (item,) = chunked._items(["long.flac"], [{"instruction": "what dog"}])
    tokens, counts = chunked.bundle.model.audio_tokens(collate([item]))
    lengths = chunked.bundle.model.long_audio.chunk_lengths(round(9.5 * 16000))
    assert len(lengths) == 5 and int(counts[0]) > 4 * chunked.bundle.model.adapter.num_tokens(
        chunked.bundle.model.encoder.num_frames(16000)
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"long_audio": "../x"}))
    with pytest.raises(UserError, match="long_audio.*is not one of reject, crop"):
        AudioLM.from_pretrained("model", device="cpu")


def test_an_hour_takes_the_memory_of_a_batch(model, monkeypatch):
    """The stand-in for the model answers at once; the file is read piece by piece."""
    with soundfile.SoundFile("hour.wav", "w", 16000, 1, "PCM_16") as file:
        for minute in range(60):
            file.write(noise(60, minute))
    longest = []

    def answer(clips, questions, **options):
        longest.append(max(len(clip.audio) for clip in clips))
        return [model_part] * len(clips)

    model.ask("short.wav", "what dog")
    ((model_part,),) = model.parts
    monkeypatch.setattr(model, "_answer", answer)
    tracemalloc.start()
    text = model.transcribe("hour.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(longest) <= 32000 and len(text.split()) >= 1800 * len(model_part.text.split())
    assert model.parts[0][-1].start > 3590 and peak < 30e6
