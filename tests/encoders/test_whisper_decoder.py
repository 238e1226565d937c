"""Whisper's own transcripts from the encoder's pass: those of transformers' generate, beside unchanged features."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from audiolm_lite.audio.reading import read_audio
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.encoders.whisper_decoder import plain_text
from audiolm_lite.evaluation.metrics.asr import score_rows
from audiolm_lite.plan.meta_model import build_meta_encoder
from tests.tiny import save_recognizer, save_whisper

CLIPS = [
    0.1 * (1 + n) * torch.randn(samples, generator=torch.Generator().manual_seed(n))
    for n, samples in enumerate((16000, 9000, 32000, 500))
]


def collate(clips):
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips])


@pytest.fixture(scope="module", params=["english", "multilingual"])
def recognizer(request, tmp_path_factory):
    """Folder and model, the arguments that select Korean in the model with languages."""
    folder = tmp_path_factory.mktemp(request.param)
    languages = ("en", "ko") if request.param == "multilingual" else ()
    return folder, save_recognizer(folder, languages), {"language": "ko", "task": "transcribe"} if languages else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognizer")
    save_recognizer(folder)
    return folder


def encoder_of(folder, padding="trimmed", language="en", **arguments):
    return WhisperEncoder(str(folder), padding=padding, decoder_language=language, **arguments).eval()


@pytest.mark.parametrize("padding", ["full", "trimmed"])
def test_transcripts_are_those_of_transformers(recognizer, padding):
    folder, model, spoken = recognizer
    encoder = encoder_of(folder, padding, spoken.get("language", "en"))
    features, frames, transcripts = encoder.recognize(*collate(CLIPS))
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    clips = [clip.numpy() for clip in CLIPS]
    inputs = extractor(clips, sampling_rate=16000, return_tensors="pt", padding="max_length").input_features
    room = model.config.max_target_positions - (4 if spoken else 2)
    tokens = model.generate(inputs, max_new_tokens=room, **spoken)
    expected = encoder.decoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert transcripts == [text.strip() for text in expected] and len(set(transcripts)) > 1
    for one, other in zip((features, frames), encoder(*collate(CLIPS))):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("There's iron, they say; in ALL our blood.", "there's iron they say in all our blood"),
        ("'Tis 9:30 -- the boys' \u2018rock\u2019 don\u2019t!", "tis 9 30 the boys rock don't"),
        ("Caf\u00e9 na\u00efve, \u00c9mile", "caf\u00e9 na\u00efve \u00e9mile"),
        (
            "\u0915\u094d\u092f\u093e \u0939\u0948\u0964",
            "\u0915\u094d\u092f\u093e \u0939\u0948",
        ),  # vowel signs stay, the danda does not
        ("\uc548\ub155\ud558\uc138\uc694.", "\uc548\ub155\ud558\uc138\uc694"),
        (" ... ", ""),
    ],
)
def test_plain_text_has_words_only(text, plain):
    assert plain_text(text) == plain == plain_text(plain)


def test_plain_transcripts_are_those_of_the_decoder_in_plain_text(folder):
    written, plain = (encoder_of(folder, decoder_text=text) for text in ("written", "plain"))
    texts = written.recognize(*collate(CLIPS))[2]
    assert plain.recognize(*collate(CLIPS))[2] == [plain_text(text) for text in texts]
    assert written.identity() == plain.identity()  # features are the same


def test_a_transcript_does_not_depend_on_its_batch(folder):
    encoder = encoder_of(folder, pool=3, layer_mix="mean")
    together = encoder.recognize(*collate(CLIPS))[2]
    assert [encoder.recognize(*collate([clip]))[2][0] for clip in CLIPS] == together


def test_the_decoder_is_no_part_of_the_encoder(folder):
    """Not trained, not saved, not part of the identity, and not loaded where nothing is transcribed."""
    encoder, plain = encoder_of(folder), WhisperEncoder(str(folder), padding="trimmed")
    encoder(*collate(CLIPS))
    assert "model" not in vars(encoder.decoder)
    transcripts = encoder.recognize(*collate(CLIPS))[2]
    assert encoder.identity() == plain.identity()
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in encoder.named_parameters()] == [name for name, _ in plain.named_parameters()]
    # An encoder in 16 bits still has a decoder in float32.
    assert len(encoder.bfloat16().recognize(*collate(CLIPS))[2]) == len(transcripts)
    assert encoder.decoder.model.dtype == torch.float32


def test_the_planner_needs_no_decoder(folder):
    block = {"type": "whisper", "source": str(folder), "padding": "trimmed", "decoder_language": "en"}
    encoder = build_meta_encoder({**block, "decoder_text": "plain"})
    assert next(encoder.parameters()).is_meta and encoder.num_layers == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "exact"}, "needs padding full or trimmed"),
        ({"padding": "window", "window_seconds": 1}, "needs padding full or trimmed"),
        ({"layers": [0]}, "the last block in layers"),
        ({"language": "ko"}, "'ko' is not a language of .*: en$"),
        ({"decoder_text": "lower"}, 'decoder_text is \'lower\', it must be "written" or "plain"'),
    ],
)
def test_impossible_arguments_are_refused(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        encoder_of(folder, **arguments)


def test_unknown_languages_are_refused_with_those_of_the_model(tmp_path):
    save_recognizer(tmp_path, ("en", "ko"))
    with pytest.raises(ConfigError, match="'de' is not a language of .*: en, ko$"):
        encoder_of(tmp_path, language="de")


def test_sources_without_a_decoder_are_refused(tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "max_source_positions": 100}
    block = {"type": "whisper", "source": sizes, "padding": "full", "decoder_language": "en"}
    with pytest.raises(ConfigError, match="needs a model in transformers' format"):
        build("encoders", block)
    save_whisper(tmp_path)  # an encoder and a decoder without tokenizer
    with pytest.raises(ConfigError, match="needs the tokenizer and generation_config.json"):
        build("encoders", {**block, "source": str(tmp_path)})
    with pytest.raises(ConfigError, match="set decoder_language"):
        WhisperEncoder(str(tmp_path), padding="full").recognize(*collate(CLIPS))


def test_a_decoder_with_missing_weights_is_refused(tmp_path):
    model = save_recognizer(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if "decoder.layers.1.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match="lacks 2 tensors that transcripts need.*decoder.layers.1.fc1"):
        encoder_of(tmp_path).recognize(*collate(CLIPS))


def test_real_transcripts(real_data):
    parent = os.environ.get("AUDIOLM_LITE_BACKBONES")
    if not parent:
        pytest.skip("AUDIOLM_LITE_BACKBONES is not set (real backbones)")
    encoder = encoder_of(Path(parent) / "whisper-tiny.en")
    folder = real_data / "librispeech_dev" / "2033" / "164914"
    lines = (folder / "2033-164914.trans.txt").read_text().splitlines()[-4:]
    names, targets = zip(*(line.split(" ", 1) for line in lines))
    clips = [read_audio(folder / f"{name}.flac") for name in names]
    with torch.no_grad():
        transcripts = encoder.recognize(*collate(clips))[2]
    rows = [{"id": name, "target": target} for name, target in zip(names, targets)]
    assert score_rows(rows, transcripts, normaliser="whisper_english")["wer"] < 0.25, transcripts
