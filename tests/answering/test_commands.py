"""The commands transcribe, describe and ask, on files of all kinds, with a stand-in for the released model."""

import json

import numpy as np
import pytest
import soundfile

from audiolm_lite.answering import ask, describe, transcribe
from audiolm_lite.answering.files import answer_files
from audiolm_lite.api import AudioLM
from audiolm_lite.audio.windows import audio_windows
from audiolm_lite.config.errors import UserError
from audiolm_lite.hub import released
from tests.released import save_stage


@pytest.fixture(autouse=True)
def tiny(sources, make_experiment, make_model, monkeypatch):
    """Make a stage the released model "tiny", and write recordings: two short ones, a long one, and bad ones."""
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(sources / "cache"))
    monkeypatch.setattr("audiolm_lite.decoding.bundle.multiplies_bf16", lambda device: False)
    monkeypatch.setattr(released, "RELEASED", sources / "released")
    monkeypatch.chdir(sources)
    (sources / "released").mkdir()
    save_stage(sources, make_experiment, make_model).rename(sources / "released" / "tiny")
    generator = np.random.default_rng(0)
    for name, seconds, rate in (("a.wav", 0.8, 16000), ("b.mp3", 1.2, 44100), ("long.ogg", 5.0, 22050)):
        soundfile.write(name, 0.1 * generator.standard_normal(round(seconds * rate)), rate)
    soundfile.write("empty.wav", np.zeros(0), 16000)
    (sources / "text.wav").write_text("no audio")


def test_one_file_is_its_transcript(capsys):
    assert transcribe.main(["a.wav"]) == 0
    out = capsys.readouterr().out
    assert out == AudioLM.from_pretrained("tiny", "cpu").transcribe("a.wav") + "\n"


def test_files_that_cannot_be_read_are_skipped(capsys):
    """The others have the answers that they have alone, one line each, in their order."""
    files = ["a.wav", "text.wav", "b.mp3", "missing.wav", "empty.wav", "long.ogg"]
    assert transcribe.main([*files, "--batch_size", "3"]) == 3
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [name for name, _ in lines] == ["a.wav", "b.mp3", "long.ogg"]
    skipped = [line.split(":")[0] for line in err.splitlines() if line.endswith("skipped")]
    assert skipped == ["text.wav", "missing.wav", "empty.wav"]
    for name, text in lines:
        transcribe.main([name])
        assert capsys.readouterr().out == text + "\n"


def test_silence_is_not_given_to_the_model(capsys):
    soundfile.write("quiet.wav", np.zeros(16000), 16000)
    assert transcribe.main(["quiet.wav"]) == 0
    out, err = capsys.readouterr()
    assert out == "\n" and "quiet.wav: 1 of 1 parts below silence_level" in err
    assert ask.main(["what dog", "quiet.wav", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["text"] == "nothing is said" and part["stopped"] == "silence"
    assert ask.main(["what dog", "a.wav", "--silence_level", "-5", "--tokens_per_second", "3"]) == 0
    assert capsys.readouterr().out == "nothing is said\n"
    assert ask.main(["what dog", "quiet.wav", "--silence_level", "none"]) == 0
    assert "below silence_level" not in capsys.readouterr().err


def test_a_long_recording_is_joined_or_answered_in_parts(capsys):
    model = AudioLM.from_pretrained("tiny", "cpu")
    windows = list(audio_windows("long.ogg", model.bundle.model.encoder.max_seconds))
    texts = [model.transcribe(window.samples) for window in windows]
    assert len(texts) >= 3
    assert transcribe.main(["long.ogg"]) == 0
    assert capsys.readouterr().out.split() == " ".join(texts).split()
    assert describe.main(["long.ogg"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in lines] == [model.caption(window.samples, transcript=False) for window in windows]
    assert lines[0][0].startswith("0.0-") and lines[-1][0].endswith("-5.0 s")


def transcript_of(name, samples, capsys):
    soundfile.write(name, samples, 16000, subtype="FLOAT")
    assert transcribe.main([name]) == 0
    return capsys.readouterr().out.rstrip("\n")


def test_a_channel_is_chosen(capsys):
    left, right = (0.1 * np.random.default_rng(seed).standard_normal(16000) for seed in (5, 6))
    soundfile.write("call.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    soundfile.write("right.wav", right, 16000, subtype="FLOAT")
    assert transcribe.main(["call.wav", "--channel", "1"]) == transcribe.main(["right.wav"]) == 0
    chosen, alone = capsys.readouterr().out.splitlines()
    assert chosen == alone
    assert transcribe.main(["call.wav", "right.wav", "gone.wav", "--channel", "each"]) == 3
    out, err = capsys.readouterr()
    lines = dict(line.split("\t") for line in out.splitlines())
    assert list(lines) == ["call.wav, channel 0", "call.wav, channel 1", "right.wav, channel 0"]
    assert lines["call.wav, channel 1"] == lines["right.wav, channel 0"] == alone
    assert lines["call.wav, channel 0"] == transcript_of("left.wav", left, capsys)
    assert "gone.wav, channel 0: no such file" in err
    assert transcribe.main(["call.wav", "--channel", "2"]) == 3
    assert "channel 2: it has 2 channels, 0 to 1; correct the channel; skipped" in capsys.readouterr().err


def test_json_has_the_transcript_of_the_prompt(capsys):
    ask.main(["what dog", "a.wav", "--json", "--transcript"])
    heard = json.loads(capsys.readouterr().out)
    assert heard["audio"] == "a.wav" and heard["seconds"] == 0.8 and heard["parts"][0]["transcript"]
    transcribe.main(["a.wav", "--json"])
    assert json.loads(capsys.readouterr().out)["parts"][0]["transcript"] == heard["parts"][0]["transcript"]
    for command, arguments in ((ask, ["what dog"]), (describe, []), (transcribe, ["--no-transcript"])):
        command.main([*arguments, "a.wav", "--json"])
        assert json.loads(capsys.readouterr().out)["parts"][0]["transcript"] is None


def test_a_clip_that_the_model_refuses_spoils_no_other(monkeypatch):
    model = AudioLM.from_pretrained("tiny", "cpu", batch_size=3)
    expected = model.ask(["a.wav", "b.mp3"], "what dog")
    asked = model.ask

    def refuse(clips, question, **options):
        if min(len(clip) for clip in clips) < 16000:
            raise ValueError("0.8 s is too short for one audio token")
        return asked(clips, question, **options)

    monkeypatch.setattr(model, "ask", refuse)
    answers = list(answer_files(model, ["b.mp3", "a.wav", "b.mp3"], "what dog"))
    assert [answer.text for answer in answers] == [expected[1], "", expected[1]]
    assert answers[1].error == "at 0.0 s: 0.8 s is too short for one audio token"


def test_an_error_of_the_question_is_not_one_of_the_files(sources):
    path = sources / "released" / "tiny" / "audiolm_lite.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"template": "{bos}user : {audio} answer : {answer}{eos}"}))
    with pytest.raises(UserError, match="cannot answer 'what dog'"):
        ask.main(["what dog", "a.wav", "b.mp3"])


def test_answers_arrive_before_later_files_are_read(monkeypatch):
    """Many files, or an endless list of them, need no memory."""
    model = AudioLM.from_pretrained("tiny", "cpu", batch_size=2)

    def files():
        yield from ["a.wav", "b.mp3", "a.wav"]
        raise AssertionError("read too early")

    answers = answer_files(model, files(), "what dog")
    assert [next(answers).audio, next(answers).audio] == ["a.wav", "b.mp3"]
