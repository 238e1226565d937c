"""Whisper's transcripts in a manifest, by a tiny random Whisper, whose output is meaningless but reproducible."""

import json

import numpy as np
import pytest
import soundfile
import torch
from ruamel import yaml

from audiolm_lite.audio.reading import read_audio
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.encoders.whisper import WhisperEncoder
from data_prep import transcripts
from tests.tiny import save_recognizer


@pytest.fixture
def made(tmp_path):
    """Three clips with two questions each, one of them broken, and an openai-whisper checkpoint."""
    import whisper

    torch.manual_seed(0)
    dims = whisper.model.ModelDimensions(80, 1500, 16, 2, 1, 51865, 448, 16, 2, 1)
    model = whisper.model.Whisper(dims)
    torch.save({"dims": dims.__dict__, "model_state_dict": model.state_dict()}, tmp_path / "tiny.pt")
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(8000), 16000)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    rows = [
        {"id": f"{name}-{task}", "audio": f"{name}.wav", "task": task, "instruction": "?", "target": "x"}
        | {"dataset": "d", "split": "test"}
        for name in "abc"
        for task in ("asr", "caption")
    ]
    write_manifest(tmp_path / "test.jsonl", rows)
    return tmp_path


def test_every_row_gets_its_clips_transcript(made, monkeypatch, capsys):
    import whisper

    transcribed = []

    def transcribe(model, audio, **options):
        transcribed.append(len(audio))
        if len(transcribed) == 2 and not made.joinpath("killed").exists():
            made.joinpath("killed").touch()
            raise KeyboardInterrupt
        return {"text": f" text {len(transcribed)} "}

    monkeypatch.setattr(whisper.model.Whisper, "transcribe", transcribe)
    command = [str(made / "test.jsonl"), str(made / "with.jsonl"), "--model", str(made / "tiny.pt"), "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        transcripts.main(command)
    assert not (made / "with.jsonl").exists()
    assert transcripts.main(command) == 3
    rows = {row["id"]: row["transcript"] for row in read_manifest(made / "with.jsonl")}
    # The clip transcribed before the interruption is not transcribed again.
    assert rows == {"a-asr": "text 1", "a-caption": "text 1", "b-asr": "text 3", "b-caption": "text 3"}
    [rejected] = map(json.loads, (made / "with.jsonl.rejected.jsonl").read_text().splitlines())
    assert rejected["key"] == "c.wav" and "not readable as audio" in rejected["reason"]
    assert "4 of 6 rows, 1 clips rejected" in capsys.readouterr().out


def test_a_real_model_runs_and_is_deterministic(made):
    rows = read_manifest(made / "test.jsonl")[:2]
    write_manifest(made / "one.jsonl", rows)
    texts = []
    for name in ("x.jsonl", "y.jsonl"):
        command = [str(made / "one.jsonl"), str(made / name), "--model", str(made / "tiny.pt"), "--device", "cpu"]
        assert transcripts.main([*command, "--language", "en", "--field", "words"]) == 0
        texts.append([row["words"] for row in read_manifest(made / name)])
    assert texts[0] == texts[1] and len(set(texts[0])) == 1


@pytest.fixture
def encoder(made):
    """YAML file of a tiny Whisper with its own decoder, for clips of at most 2 s."""
    save_recognizer(made / "recognizer")
    block = f"type: whisper\nsource: {made / 'recognizer'}\npadding: trimmed\ndecoder_language: en\n"
    (made / "encoder.yaml").write_text(block)
    return made / "encoder.yaml"


def run(made, output, *options):
    return transcripts.main([str(made / "test.jsonl"), str(made / output), *map(str, options), "--device", "cpu"])


def test_transcripts_of_the_encoders_own_decoder(made, encoder, monkeypatch):
    soundfile.write(made / "long.wav", np.zeros(40000), 16000)
    soundfile.write(made / "b.wav", 0.6 * np.sin(np.arange(32000) ** 1.4), 16000)  # heard otherwise than a.wav
    rows = read_manifest(made / "test.jsonl")
    both = {**rows[0], "id": "both", "further_audio": [{"audio": "b.wav", "start": 0.1}]}
    write_manifest(made / "test.jsonl", [*rows, both, {**rows[0], "id": "long", "audio": "long.wav"}])
    own = build("encoders", yaml.YAML(typ="safe").load(encoder.read_text())).eval()

    def expected(name, start=0.0):
        clip = read_audio(made / f"{name}.wav", start)
        return own.recognize(clip[None], torch.tensor([len(clip)]))[2][0]

    written = {}
    for size in (1, 4):
        assert run(made, f"{size}.jsonl", "--encoder", encoder, "--batch_size", size) == 3
        written[size] = {row["id"]: row["transcript"] for row in read_manifest(made / f"{size}.jsonl")}
    a, b = expected("a"), expected("b")
    assert a != b and written[1] == written[4] == {
        "a-asr": a,
        "a-caption": a,
        "b-asr": b,
        "b-caption": b,
        "both": f"{a} {expected('b', 0.1)}",
    }
    rejected = [json.loads(line) for line in (made / "4.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in rejected] == ["c.wav", "long.wav"] and "longer than" in rejected[1]["reason"]


def test_an_interrupted_run_of_the_encoder_continues(made, encoder, monkeypatch):
    passes = []

    def encode(self, waveforms, lengths, run=WhisperEncoder._encode):
        passes.append(len(lengths))
        if len(passes) == 2:
            raise KeyboardInterrupt
        return run(self, waveforms, lengths)

    monkeypatch.setattr(WhisperEncoder, "_encode", encode)
    options = ("--encoder", encoder, "--batch_size", 1)
    with pytest.raises(KeyboardInterrupt):
        run(made, "x.jsonl", *options)
    run(made, "x.jsonl", *options)
    assert passes == [1, 1, 1]  # a, b interrupted, b
    run(made, "y.jsonl", *options)
    assert (made / "x.jsonl").read_bytes() == (made / "y.jsonl").read_bytes()


def test_a_share_of_the_clips_is_chosen_by_their_names(made):
    rows = read_manifest(made / "test.jsonl")
    names = [f"{number}.wav" for number in range(200)]
    write_manifest(
        made / "test.jsonl",
        [{**rows[n % 2], "id": f"{name}-{n % 2}", "audio": name} for name in names for n in range(2)],
    )
    chosen = {}
    for share, seed in ((0.3, 0), (0.5, 0), (0.3, 1)):
        run(made, "x.jsonl", "--blank", "--share", share, "--seed", seed)
        ids = [row["id"] for row in read_manifest(made / "x.jsonl")]
        chosen[share, seed] = {name.removesuffix("-0") for name in ids if name.endswith("-0")}
        assert chosen[share, seed] == {name.removesuffix("-1") for name in ids if name.endswith("-1")}
    assert 40 < len(chosen[0.3, 0]) < 80 and chosen[0.3, 0] < chosen[0.5, 0] and chosen[0.3, 0] != chosen[0.3, 1]


def test_rows_of_some_tasks_are_chosen(made, capsys):
    run(made, "x.jsonl", "--blank", "--tasks", "caption")
    assert [row["id"] for row in read_manifest(made / "x.jsonl")] == ["a-caption", "b-caption", "c-caption"]
    with pytest.raises(SystemExit):
        run(made, "x.jsonl", "--blank", "--tasks", "caption", "captions")
    assert "no row has the task 'captions'; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: logmel", "needs a mapping with type: whisper"),
        ("type: [", "not a YAML file"),
        ("type: whisper\nsource: {folder}\npadding: trimmed", "need decoder_language in the block, or --language"),
        ("type: whisper\nsource: {folder}\npadding: exact\ndecoder_language: en", "needs padding full or trimmed"),
    ],
)
def test_unusable_encoders_are_refused(made, encoder, text, message):
    encoder.write_text(text.format(folder=made / "recognizer"))
    with pytest.raises(ConfigError, match=message):
        run(made, "x.jsonl", "--encoder", encoder)
    assert not (made / "x.jsonl").exists()


def test_missing_weights_are_not_the_fault_of_the_clips(made, encoder):
    model = save_recognizer(made / "recognizer")
    state = {name: tensor for name, tensor in model.state_dict().items() if "decoder.layers.1.fc1" not in name}
    model.save_pretrained(made / "recognizer", state_dict=state)
    with pytest.raises(ConfigError, match="lacks 2 tensors"):
        run(made, "x.jsonl", "--encoder", encoder)


@pytest.mark.parametrize("options", [("--share", "0"), ("--share", "1.5"), ("--batch_size", "0"), ("--share", "1e-9")])
def test_impossible_options_are_refused(made, options, capsys):
    with pytest.raises(SystemExit):
        run(made, "x.jsonl", *options)
    assert options[0] in capsys.readouterr().err


def test_blank_transcripts_need_no_model(made):
    assert transcripts.main([str(made / "test.jsonl"), str(made / "blank.jsonl"), "--blank"]) == 0
    assert [row["transcript"] for row in read_manifest(made / "blank.jsonl")] == [""] * 6


def test_output_in_another_folder_is_refused(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        transcripts.main([str(made / "test.jsonl"), str(tmp_path / "other" / "x.jsonl")])
    assert "manifest's folder" in capsys.readouterr().err
