"""AudioLM: files and waveforms, one clip and several, on every backend, with the same answers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import audiolm_lite
from audiolm_lite.api import AudioLM
from audiolm_lite.audio.inputs import InputError
from audiolm_lite.audio.reading import AudioError
from audiolm_lite.data.clip_sources import WaveformSource
from audiolm_lite.data.controls import CONTROLS
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.decoding import DecodeState
from audiolm_lite.decoding.options import GenerationError
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.evaluation.runner import evaluate
from audiolm_lite.hub.folder import ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model
from audiolm_lite.language.prompt import PromptError
from tests.tiny import byte_tokenizer, save_recognizer, tiny_llm

SECONDS = (0.6, 1.1, 0.35)
OPTIONS = {"max_new_tokens": 6}


def noise(number):
    generator = np.random.default_rng(number)
    return (0.1 * generator.standard_normal(int(16000 * SECONDS[number]))).astype(np.float32)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Compute in float32 on every machine: in bfloat16 the rounding depends on the size of the batch."""
    monkeypatch.setattr("audiolm_lite.decoding.bundle.multiplies_bf16", lambda device: False)


@pytest.fixture
def folder(sources, make_experiment, make_model):
    """Folder with a saved model and three clips."""
    experiment = make_experiment(lora=True)
    experiment |= {"generation": OPTIONS, "instructions": {"transcribe": "transcribe", "caption": "describe audio"}}
    save_model(make_model(experiment), experiment, sources / "model")
    for number in range(len(SECONDS)):
        soundfile.write(sources / f"{number}.wav", noise(number), 16000, subtype="FLOAT")
    return sources


def test_files_waveforms_batches_and_single_clips_give_the_same_answers(folder):
    model = audiolm_lite.AudioLM.from_pretrained(folder / "model", device="cpu", batch_size=2)
    files = [str(folder / f"{number}.wav") for number in range(3)]
    answers = model.ask(files, "what dog")
    assert len(answers) == 3 and all(isinstance(text, str) for text in answers) and len(set(answers)) > 1
    for number, text in enumerate(answers):
        assert model.ask(folder / f"{number}.wav", "what dog") == text
        assert model.ask(torch.from_numpy(noise(number)), "what dog") == text
    assert model.ask(files, ["what dog", "rain", "what dog"])[::2] == answers[::2]


def test_transcribe_and_caption_use_the_instructions_of_the_model(folder):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    clip = folder / "1.wav"
    assert model.transcribe(clip) == model.ask(clip, "transcribe")
    assert model.caption(clip) == model.ask(clip, "describe audio")


def test_dropped_characters_of_a_question_cause_a_warning(folder, recwarn):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    model.ask(folder / "0.wav", "what dog")
    assert not [w for w in recwarn if w.category is UserWarning and "tokenizer" in str(w.message)]
    with pytest.warns(UserWarning, match=r"reads the question 'What dog' as 'dog'.*lower case"):
        model.ask(folder / "0.wav", "What dog")


def test_sampled_answers_depend_on_clip_and_seed_only(folder):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    files = [str(folder / f"{number}.wav") for number in range(3)]
    sampled = model.ask(files, "what", temperature=1.5, seed=3)
    assert sampled[1] == model.ask(files[1], "what", temperature=1.5, seed=3)
    assert sampled != model.ask(files, "what", temperature=1.5, seed=4)
    assert len(model.ask(files[0], "what", max_new_tokens=1).split()) <= 1


def test_several_clips_and_turns_in_one_question(folder):
    experiment = json.loads((folder / "model" / "audiolm_lite.json").read_text())
    experiment["template"] = "{bos}{turn}user : {audio} {instruction} answer : {answer}{eos}"
    (folder / "model" / "audiolm_lite.json").write_text(json.dumps(experiment))
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    pair = (folder / "0.wav", torch.from_numpy(noise(1)))
    both = model.ask(pair, "what <audio> dog <audio>")
    assert isinstance(both, str)
    items = model._items([pair] * 2, [{"instruction": text} for text in ("what <audio> dog <audio>", "what dog")])
    assert len(items[0].clips) == 2 and items[0].input_ids != items[1].input_ids
    # the answer is the same in a batch, and earlier turns are part of the prompt
    assert model.ask([pair, folder / "2.wav"], ["what <audio> dog <audio>", "rain"])[0] == both
    model.ask(folder / "0.wav", "rain", history=[("what dog", "dog")])
    with pytest.raises(ValueError, match="1 <audio> marks"):
        model.ask(pair, "what <audio>")


def test_a_question_that_the_prompt_does_not_have_is_refused(folder):
    experiment = json.loads((folder / "model" / "audiolm_lite.json").read_text())
    experiment["template"] = "{bos}user : {audio} transcribe answer : {answer}{eos}"
    (folder / "model" / "audiolm_lite.json").write_text(json.dumps(experiment))
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    assert isinstance(model.transcribe(folder / "0.wav"), str) and isinstance(model.caption(folder / "0.wav"), str)
    with pytest.raises(PromptError, match="cannot answer 'what dog', since its prompt .* has no {instruction}"):
        model.ask(folder / "0.wav", "what dog")


def test_fields_fill_optional_slots(folder):
    experiment = json.loads((folder / "model" / "audiolm_lite.json").read_text())
    experiment["template"] = "{bos}user : {audio}{transcript:: *.} {instruction} answer : {answer}{eos}"
    (folder / "model" / "audiolm_lite.json").write_text(json.dumps(experiment))
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    rows = [{"instruction": "what", **fields} for fields in ({}, {"transcript": "dog rain"}, {"transcript": ""})]
    without, filled, blank = (item.input_ids for item in model._items([folder / "0.wav"] * 3, rows))
    assert blank == without and len(filled) == len(without) + 4
    assert model.ask(folder / "0.wav", "what", fields={"transcript": ""}) == model.ask(folder / "0.wav", "what")


@pytest.fixture
def recognizing(folder, make_experiment, make_model):
    """AudioLM on a Whisper with decoder and a prompt with its transcript, loaded from a folder that contains both."""
    save_recognizer(folder / "recognizer")
    experiment = make_experiment(lora=False) | {"generation": OPTIONS}
    experiment["encoder"] |= {"source": str(folder / "recognizer"), "padding": "trimmed", "decoder_language": "en"}
    experiment["template"] = "{bos}{audio}{transcript:user : *.} {instruction} answer : {answer}{eos}"
    byte_tokenizer(("<s>", "</s>"), bos_token="<s>", eos_token="</s>").save_pretrained(folder / "llama")
    tiny_llm(258, tie_word_embeddings=True, max_position_embeddings=256).save_pretrained(folder / "llama")
    save_model(make_model(experiment), experiment, folder / "heard", bundle=True)
    shutil.rmtree(folder / "recognizer")
    return AudioLM.from_pretrained(folder / "heard", device="cpu", batch_size=2)


def test_the_prompt_gets_whispers_own_transcript_from_the_same_pass(folder, recognizing, monkeypatch):
    model, encoder = recognizing, recognizing.bundle.model.encoder
    passes = []
    monkeypatch.setattr(
        encoder, "_encode", lambda *given, run=encoder._encode: passes.append(len(given[1])) or run(*given)
    )
    files = [folder / f"{number}.wav" for number in range(3)]
    answers = model.ask(files, "what dog")
    assert passes == [2, 1]
    own = [encoder.recognize(torch.from_numpy(noise(n))[None], torch.tensor([len(noise(n))]))[2][0] for n in range(3)]
    assert model.transcripts == own and len(set(own)) > 1
    # The same answers as with that transcript given, and with the features of the usual pass.
    assert answers == [model.ask(file, "what dog", fields={"transcript": text}) for file, text in zip(files, own)]
    # Each prompt has its own transcript.
    rows = [{"instruction": "what dog"}] * 3
    items = model._items(files, rows, recognize=True)
    assert all(item.waveform is None and item.features is not None for item in items)
    given = model._items(files, [{**row, "transcript": text} for row, text in zip(rows, own)])
    assert [item.input_ids for item in items] == [item.input_ids for item in given]


def test_the_transcript_can_be_left_out_or_replaced(folder, recognizing):
    model, clip = recognizing, folder / "1.wav"
    with_it, without = model.transcribe(clip), model.transcribe(clip, transcript=False)
    assert with_it != without and model.transcripts == [None]
    assert model.transcribe(clip, fields={"transcript": ""}) == without and model.transcripts == [""]
    model.transcribe(clip, fields={"transcript": "rain"})
    assert model.transcripts == ["rain"]
    # Several clips in one question: their transcripts in reading order.
    pair = (clip, folder / "0.wav")
    model.ask(list(pair), "what")
    first, second = model.transcripts
    model.ask(pair, "what")
    assert model.transcripts == [f"{first} {second}"]


def test_models_without_the_slot_or_the_decoder_have_no_transcripts(folder, recognizing, monkeypatch):
    plain = AudioLM.from_pretrained(folder / "model", device="cpu")
    plain.ask(folder / "0.wav", "what dog")
    assert plain.transcripts == [None]
    monkeypatch.setattr(recognizing.bundle.model.encoder, "decoder", None)
    recognizing.ask(folder / "0.wav", "what dog")
    assert recognizing.transcripts == [None]


def test_beams_are_a_generation_setting(folder):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    files = [folder / f"{number}.wav" for number in range(3)]
    answers = model.ask(files, "what dog", beams=3)
    assert answers == [model.ask(file, "what dog", beams=3, length_penalty=1.0) for file in files]
    with pytest.raises(ValueError, match="beams 3 and temperature cannot be combined"):
        model.ask(files, "what dog", beams=3, temperature=0.5)


@pytest.mark.parametrize("quiet", [np.zeros(8000), 3e-4 * np.sin(np.arange(8000) / 5) + 0.1])
def test_silence_is_answered_without_the_model(folder, monkeypatch, quiet):
    """Its neighbours have the answers that they have alone; two clips are silent only if both are."""
    soundfile.write(folder / "quiet.wav", quiet, 16000, subtype="FLOAT")
    model = AudioLM.from_pretrained(folder / "model", device="cpu", batch_size=2)
    files = [str(folder / name) for name in ("quiet.wav", "0.wav", "quiet.wav", "1.wav")]
    assert model.ask(files, "what dog")[1::2] == [model.ask(file, "what dog") for file in files[1::2]]
    assert model.ask(files, "what dog")[::2] == ["nothing is said"] * 2
    assert model.stopped[::2] == ["silence"] * 2 and "silence" not in model.stopped[1::2]
    assert model.ask(files, "what dog", silence_level=-10)[1] == "nothing is said"
    assert model.ask((files[0], files[1]), "what dog") != "nothing is said"
    monkeypatch.setattr("audiolm_lite.decoding.bundle.eager_backend", None)  # the LLM is not run
    assert model.transcribe(files[0]) == "" and model.transcribe([files[0]] * 3) == [""] * 3
    assert model.caption(files[0], silence_answer="silence") == "silence"
    with pytest.raises(TypeError):
        model.transcribe(files[0], silence_level=None)


def test_backend_gets_the_merged_llm_and_batches_of_its_size(folder, monkeypatch):
    """Compilation is tested in tests/deploy; here a backend with a fixed cache replaces it."""
    made = []

    def fixed(name, llm, batch_size, max_length):
        assert name == "aoti" and not hasattr(llm, "peft_config") and not llm.training
        eager = make_backend("eager", llm, batch_size, max_length)
        made.append(replace(eager, name=name, state=DecodeState.allocate(llm, batch_size, max_length)))
        return made[-1]

    files = [str(folder / f"{number}.wav") for number in range(3)]
    eager = AudioLM.from_pretrained(folder / "model", device="cpu").ask(files, "what dog")
    monkeypatch.setattr("audiolm_lite.api.make_backend", fixed)
    compiled = AudioLM.from_pretrained(folder / "model", device="cpu", backend="aoti", batch_size=2, max_length=64)
    assert compiled.ask(files, "what dog") == eager and len(made) == 1


def test_lora_is_merged_with_the_same_answers(folder):
    files = [str(folder / f"{number}.wav") for number in range(3)]
    unmerged = load_model(folder / "model")
    model = AudioLM.from_pretrained(folder / "model", device="cpu", dtype="float32")
    items = model._items(files, [{"instruction": "what dog"}] * len(files))
    assert hasattr(unmerged.model.llm, "peft_config") and not hasattr(model.bundle.model.llm, "peft_config")
    assert model.ask(files, "what dog") == unmerged.answer(items)
    embeds = torch.randn(1, 5, unmerged.model.llm.get_input_embeddings().embedding_dim)
    torch.testing.assert_close(
        *(llm(inputs_embeds=embeds).logits for llm in (model.bundle.model.llm, unmerged.model.llm)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("native", [True, False])
def test_the_llm_computes_in_what_the_device_multiplies(native, folder, monkeypatch):
    monkeypatch.setattr("audiolm_lite.decoding.bundle.multiplies_bf16", lambda device: native)
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    assert model.bundle.dtype == ("bfloat16" if native else "float32")
    assert {buffer.dtype for buffer in model.bundle.model.llm.buffers()} == {torch.float32}
    assert isinstance(model.ask(folder / "0.wav", "what dog"), str)
    assert AudioLM.from_pretrained(folder / "model", device="cpu", dtype="float32").bundle.dtype == "float32"


def test_a_merged_model_cannot_be_saved_as_if_it_had_its_lora(folder, make_experiment):
    model = AudioLM.from_pretrained(folder / "model", device="cpu").bundle.model
    with pytest.raises(ModelFolderError, match="the LoRA has been merged"):
        save_model(model, make_experiment(lora=True), folder / "again")
    assert not (folder / "again").exists()


def test_looping_answers_are_cut_and_the_limit_follows_the_clip(folder, monkeypatch):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="a waveform repeated itself"):
        patch.setattr("audiolm_lite.decoding.backend.generate", lambda *arguments, **options: [[7] * 30])
        assert model.ask(torch.from_numpy(noise(0)), "what dog") == model.bundle.tokenizer.decode([7])
        assert model.stopped == ["loop"]
    limits = []

    def fixed(*arguments, max_new_tokens, **options):
        limits.extend(max_new_tokens)
        return [[7, 8]] * len(max_new_tokens)

    monkeypatch.setattr("audiolm_lite.decoding.backend.generate", fixed)
    files = [folder / f"{number}.wav" for number in range(3)]
    model.ask(files, "what dog", max_new_tokens=99, tokens_per_second=10, token_allowance=1)
    assert limits == [7, 12, 5]
    model.ask(files[2], "what dog", max_new_tokens=99, tokens_per_second=2, token_allowance=1)
    assert limits[3:] == [2] and model.stopped == ["limit"]


def test_unknown_options_of_generation_are_refused(folder):
    with pytest.raises(GenerationError, match="unknown option 'max_length'"):
        AudioLM.from_pretrained(folder / "model", device="cpu").ask(folder / "0.wav", "what dog", max_length=9)


def test_unusable_audio_is_refused(folder):
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    with pytest.raises(AudioError, match="no such file"):
        model.transcribe(folder / "none.wav")
    with pytest.raises(InputError, match=r"array of shape \[9, 16000\] has 9 channels; several clips are a list"):
        model.transcribe(torch.zeros(9, 16000))
    with pytest.raises(ValueError, match="NaN"):
        model.transcribe(torch.full((16000,), torch.nan))
    with pytest.raises(ValueError, match="2 questions for 1 clips"):
        model.ask([folder / "0.wav"], ["what", "dog"])


def test_evaluation_gives_the_answers_of_the_api(folder):
    """An evaluation of files under three controls: the answers to normal audio are those of AudioLM."""
    model = AudioLM.from_pretrained(folder / "model", device="cpu")
    rows = [
        {"id": str(n), "audio": f"{n}.wav", "task": "sound", "instruction": "what dog", "target": "dog"}
        | {"dataset": "noise", "split": "test", "duration": SECONDS[n], "labels": ["dog", "rain"]}
        for n in range(3)
    ]
    write_manifest(folder / "test.jsonl", rows)
    network = model.bundle.model
    source = WaveformSource(network.encoder.num_frames)
    prompt = PromptBuilder(model.bundle.template, model.bundle.tokenizer, network.adapter.num_tokens, with_answer=False)
    selected = select_rows([folder / "test.jsonl"])
    datasets = {control: AudioTextDataset(selected, source, prompt, control=control) for control in CONTROLS}
    result = evaluate(model.bundle, datasets, {"sound": {"type": "classification"}}, folder / "evaluation")
    assert set(result["controls"]) == {"normal", "zeros", "shuffled"}
    predictions = (folder / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 9
    for number in range(3):
        text = model.ask(folder / f"{number}.wav", "what dog")
        assert f'"id": "{number}", "control": "normal", "prediction": "{text}"' in predictions[number]
