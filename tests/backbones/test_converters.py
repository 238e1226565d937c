"""CTranslate2 and GGUF files become folders that transformers loads, with every tensor accounted for."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, WhisperProcessor

from audiolm_lite.backbones import ctranslate2
from audiolm_lite.config.errors import UserError
from audiolm_lite.config.registry import build
from audiolm_lite.convert.run import main
from tests.backbones import standins

Q = "encoder/layer_0/self_attention/linear_0"


@pytest.fixture
def arrays():
    return standins.arrays_of(standins.whisper())


@pytest.fixture
def refused(tmp_path, capsys):
    """Expect `audiolm-lite convert` to fail with a message, and to write nothing; returns what it printed."""

    def call(message, *arguments):
        with pytest.raises(UserError, match=message):
            main([*map(str, arguments), str(tmp_path / "out")])
        assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
        return capsys.readouterr().out

    return call


def test_whisper_has_the_same_tensors_tokens_and_settings(arrays, tmp_path, capsys):
    standins.write_ctranslate2(tmp_path / "ct2", arrays)
    main(["ctranslate2", str(tmp_path / "ct2"), str(tmp_path / "out")])
    assert f"{len(arrays) - 7} used, 8 ignored, 0 missing, 0 misshapen, 0 unexpected" in capsys.readouterr().out
    expected = standins.whisper()
    converted = type(expected).from_pretrained(tmp_path / "out", dtype="auto")
    assert converted.dtype == torch.float16
    for name, tensor in expected.state_dict().items():
        assert converted.state_dict()[name].equal(tensor), name
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.bos_token_id, generation.no_timestamps_token_id) == (0, 1, 3)
    assert (generation.suppress_tokens, generation.begin_suppress_tokens) == ([1, 5], [9])
    assert not generation.is_multilingual
    processor = WhisperProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.decode(processor.tokenizer("a dog").input_ids, skip_special_tokens=True) == "a dog"
    features = processor(np.zeros(8000, "f4"), sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 20, 200)  # 2 s
    encoder = build("encoders", {"type": "whisper", "source": str(tmp_path / "out")})
    assert (encoder.feature_dim, encoder.num_layers, encoder.max_seconds) == (16, 2, 2.0)


def test_languages_and_tasks_of_a_multilingual_whisper(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(ctranslate2, "_MULTILINGUAL", 100)
    standins.write_ctranslate2(tmp_path / "ct2", arrays)
    (tmp_path / "out").mkdir()
    ctranslate2.convert(tmp_path / "ct2", tmp_path / "out")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.lang_to_id, generation.task_to_id) == ({"<|en|>": 2}, {"transcribe": 5, "translate": 6})


@pytest.mark.parametrize(
    ("message", "name", "value"),
    [
        (r"encoder\.conv1\.bias is missing \(shape \[16\]\)", "encoder/conv1/bias", None),
        (r"encoder\.conv1\.bias is misshapen \(\[3\], expected \[16\]\)", "encoder/conv1/bias", np.zeros(3, "<f2")),
        ("no array encoder/num_heads; this is not a Whisper", "encoder/num_heads", None),
        ("encoder/conv3/bias is unexpected", "encoder/conv3/bias", np.zeros(3, "<f2")),
        (r"decoder/alibi is unexpected \(is 1, but 0 in Whisper\)", "decoder/alibi", np.array(1, "<i1")),
        ("decoder/activation is unexpected", "decoder/activation", np.array(0, "<i1")),
        ("8-bit weights; convert the model to float16", f"{Q}/weight_scale", np.ones(48, "<f4")),
        ("k_proj.bias is not zero", f"{Q}/bias", np.ones(48, "<f2")),
    ],
)
def test_whisper_with_another_array_is_refused(message, name, value, arrays, tmp_path, refused):
    arrays = {**arrays, name: value} if value is not None else {n: a for n, a in arrays.items() if n != name}
    standins.write_ctranslate2(tmp_path / "ct2", arrays)
    printed = refused(message, "ctranslate2", tmp_path / "ct2")
    assert "decoder/layer_*/ffn/linear_1/weight" in printed  # the report of all tensors


def test_damaged_files_are_refused(arrays, tmp_path, refused):
    folder = tmp_path / "ct2"
    folder.mkdir()
    refused("model.bin: no such file; give the folder", "ctranslate2", folder)
    standins.write_ctranslate2(folder, arrays, version=5)
    refused("version 5 of CTranslate2's format", "ctranslate2", folder)
    standins.write_ctranslate2(folder, arrays)
    content = (folder / "model.bin").read_bytes()
    for size in (0, 3, 30, len(content) // 2, len(content) - 1):
        (folder / "model.bin").write_bytes(content[:size])
        refused(f"ends after {size} bytes, inside an array; download it again", "ctranslate2", folder)
    (folder / "tokenizer.json").unlink()
    refused("tokenizer.json: no such file", "ctranslate2", folder)


@pytest.mark.parametrize(("kind", "steps"), [("F32", None), ("Q8_0", 254), ("Q4_1", 15)])
def test_llm_has_the_same_tensors(kind, steps, tmp_path, capsys):
    """Exactly, or within a step of the quantisation: the range of a row divided by the number of steps."""
    expected = standins.llm()
    standins.write_gguf(tmp_path / "in" / "llm.gguf", expected, kind)
    main(["gguf", str(tmp_path / "in"), str(tmp_path / "out")])
    assert "20 used, 0 ignored, 0 missing, 0 misshapen, 0 unexpected" in capsys.readouterr().out
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert converted.dtype == torch.bfloat16
    for name, tensor in expected.state_dict().items():
        new = converted.state_dict()[name]
        if steps is None or tensor.dim() == 1:
            assert new.equal(tensor), name
        else:
            step = 2 * tensor.float().abs().amax(1, keepdim=True) / steps
            assert ((new.float() - tensor.float()).abs() <= step).all(), name
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert not hasattr(config, "quantization_config")
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"], config.eos_token_id) == (1e-5, 50000.0, 1)


def test_llm_has_the_same_tokens_and_chat_template(tmp_path):
    standins.write_gguf(tmp_path / "in" / "llm.gguf", standins.llm())
    main(["gguf", str(tmp_path / "in" / "llm.gguf"), str(tmp_path / "out")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("<s>hi 12</s>").input_ids)
    assert pieces == ["<s>", "hi", "Ġ", "1", "2", "</s>"]  # digits are split before any merge
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi</s>"


def test_llm_with_other_tensors_is_refused(tmp_path, refused):
    standins.write_gguf(tmp_path / "llm.gguf", standins.llm(), extra=("rope_freqs.weight",))
    printed = refused("rope_freqs.weight is unexpected", "gguf", tmp_path / "llm.gguf")
    assert "blk.*.attn_q.weight" in printed
    model = standins.llm()
    del model.model.layers[1].mlp.up_proj
    standins.write_gguf(tmp_path / "llm.gguf", model)
    refused("model.layers.1.mlp.up_proj.weight is missing", "gguf", tmp_path / "llm.gguf")


def test_no_gguf_file_is_refused(tmp_path, refused):
    refused("contains 0 files", "gguf", tmp_path)
    (tmp_path / "llm.gguf").write_bytes(b"GGML" + bytes(100))
    refused("llm.gguf: not a GGUF file, or damaged", "gguf", tmp_path)


@pytest.mark.parametrize(
    ("message", "name", "value"),
    [
        ("architecture 'gemma'; only llama is supported", "general.architecture", "gemma"),
        ("scaling 'yarn', are not supported", "llama.rope.scaling.type", "yarn"),
        ("its tokenizer is 'llama'", "tokenizer.ggml.model", "llama"),
        ("with the splits of 'qwen2'", "tokenizer.ggml.pre", "qwen2"),
        ("no entry 'llama.block_count'", "llama.block_count", None),
    ],
)
def test_other_llms_are_refused(message, name, value, tmp_path, refused):
    standins.write_gguf(tmp_path / "llm.gguf", standins.llm(), changes={name: value})
    refused(message, "gguf", tmp_path / "llm.gguf")
