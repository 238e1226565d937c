"""Prompts and loading of LLMs, with a tiny Llama and a SentencePiece vocabulary trained here."""

import io
import json

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.language.llm import load_llm
from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from tests.tiny import byte_tokenizer, tiny_llm

TEXT = ["what is heard in the audio?", "a dog barks twice and a door shuts", "USER: ASSISTANT: transcribe the speech"]
TEMPLATE = "{bos}USER: {audio}\n{instruction}\nASSISTANT: {answer}{eos}"
ROW = {"id": "r1", "instruction": "what is heard?", "target": "a dog barks", "transcript": "hello"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder like those of published Llamas: float16 weights, SentencePiece vocabulary."""
    path = tmp_path_factory.mktemp("llama")
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=vocabulary,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (path / "tokenizer.model").write_bytes(vocabulary.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
    tiny_llm(320, seed=0, intermediate_size=24, initializer_range=0.02).half().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_llm({"source": str(folder)})[1]


def test_only_answer_and_end_are_supervised(tokenizer):
    ids, labels = PromptTemplate(TEMPLATE).encode(ROW, tokenizer, 4)
    assert len(ids) == len(labels)
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(AUDIO_SLOT) == 4
    supervised = [label for label in labels if label != IGNORE]
    assert supervised == ids[-len(supervised) :] and supervised[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(supervised[:-1]).strip() == "a dog barks"


def test_the_prompt_for_generation_is_a_prefix_of_the_one_in_training(tokenizer):
    template = PromptTemplate(TEMPLATE)
    complete, labels = template.encode(ROW, tokenizer, 3)
    prompt, none = template.encode(ROW, tokenizer, 3, with_answer=False)
    assert complete[: len(prompt)] == prompt and none == [IGNORE] * len(prompt)
    assert labels[len(prompt)] != IGNORE and labels[: len(prompt)] == none
    unanswered = {key: value for key, value in ROW.items() if key != "target"}
    assert template.encode(unanswered, tokenizer, 3, with_answer=False)[0] == prompt


def test_any_field_can_fill_a_slot_and_double_braces_are_literal(tokenizer):
    template = PromptTemplate("{audio}{{{transcript}}} {age}{answer}{eos}")
    ids, _ = template.encode(ROW | {"age": 41}, tokenizer, 1, with_answer=False)
    assert tokenizer.decode(ids[1:]).replace(" ", "") == "{hello}41"


@pytest.mark.parametrize("field", ["instruction", "target"])
def test_text_that_looks_like_a_special_token_stays_text(tokenizer, field):
    text = "a dog</s><s> barks"
    ids, labels = PromptTemplate(TEMPLATE).encode(ROW | {field: text}, tokenizer, 2)
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert "</s><s>" in tokenizer.decode([i for i in ids[1:-1] if i != AUDIO_SLOT])


def test_the_template_may_name_special_tokens(tokenizer):
    ids, labels = PromptTemplate("<s>{audio}</s>{answer}{eos}").encode(ROW, tokenizer, 1)
    assert ids[:3] == [tokenizer.bos_token_id, AUDIO_SLOT, tokenizer.eos_token_id]
    assert labels[:3] == [IGNORE] * 3


def test_text_that_merges_into_a_special_token_is_refused():
    pieces = {"<unk>": 0, "</s>": 1, "</": 2, "s>": 3, "s": 4, ">": 5, "<": 6, "/": 7, "a": 8}
    bpe = models.BPE(pieces, [("<", "/"), ("s", ">"), ("</", "s>")], unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), eos_token="</s>", unk_token="<unk>")
    template = PromptTemplate("{audio}{answer}{eos}")
    with pytest.raises(PromptError, match='row "r2", field "target".*special token </s>'):
        template.encode({"id": "r2", "target": "a</s>"}, tokenizer, 1)
    # An unknown character is not an error. A template with a token that the tokenizer lacks is one.
    assert template.encode({"id": "r2", "target": "a\u00e9"}, tokenizer, 1)[0] == [AUDIO_SLOT, 8, 0, 1]
    with pytest.raises(PromptError, match="bos"):
        PromptTemplate("{bos}{audio}{answer}{eos}").encode({"id": "r2", "target": "a"}, tokenizer, 1)


def test_byte_level_vocabularies_work():
    tokenizer = byte_tokenizer(eos_token="<|eot|>", bos_token="<|bos|>")
    ids, labels = PromptTemplate(TEMPLATE).encode(ROW | {"target": "<|eot|>"}, tokenizer, 2)
    assert len([label for label in labels if label != IGNORE]) == len("<|eot|>") + 1
    assert ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{bos}{answer}{eos}", "needs {audio} once, has it 0"),
        ("{audio}{audio}{answer}{eos}", "has it 2 times"),
        ("{audio}{answer}", "must end with"),
        ("{audio}{answer}.{eos}", "must end with"),
        ("{audio}{instruction!r}{answer}{eos}", "plain field name"),
        ("{audio}{}{answer}{eos}", "plain field name"),
        ("{audio}{{answer}{eos}", "literal braces"),
    ],
)
def test_wrong_templates_are_refused(template, message):
    with pytest.raises(PromptError, match=message):
        PromptTemplate(template)


def test_a_missing_field_is_reported(tokenizer):
    with pytest.raises(PromptError, match='row "r1".*no field "mood"'):
        PromptTemplate("{audio}{mood}{answer}{eos}").encode(ROW, tokenizer, 1)
    with pytest.raises(PromptError, match='no field "target"'):
        PromptTemplate(TEMPLATE).encode({"id": "x", "instruction": "y"}, tokenizer, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_llm_loads_in_the_requested_dtype(folder, dtype):
    llm, tokenizer = load_llm({"source": str(folder), "dtype": dtype})
    assert {parameter.dtype for parameter in llm.parameters()} == {getattr(torch, dtype)}
    assert tokenizer.bos_token_id == 1 and tokenizer.eos_token_id == 2
    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16).lm_head.weight
    torch.testing.assert_close(llm.lm_head.weight, saved.to(llm.lm_head.weight.dtype))


def test_float32_is_the_default(folder):
    assert load_llm({"source": str(folder)})[0].dtype == torch.float32


def test_only_the_lora_is_trainable(folder):
    lora = {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    llm, _ = load_llm({"source": str(folder), "lora": lora})
    trainable = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in trainable
    assert llm.peft_config["default"].lora_alpha == 8


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sauce": "x"}, "unknown entry 'sauce'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"quantization": "2bit"}, "8bit, 4bit"),
        ({"lora": {"r": 4}}, "'alpha' is missing"),
        ({"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"], "rank": 2}}, "'rank'"),
    ],
)
def test_wrong_entries_are_named(folder, entries, message):
    with pytest.raises(ConfigError, match=message):
        load_llm({"source": str(folder), **entries})
    with pytest.raises(ConfigError, match="'source' is missing"):
        load_llm({})


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the message on machines without a GPU")
def test_quantization_without_a_gpu_is_refused(folder):
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        load_llm({"source": str(folder), "quantization": "4bit"})
