"""The loss of LLMs that scale or cap their logits, read windows or carry states: that of transformers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from audiolm_lite.adapters.linear import LinearStack
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, collate, pack
from audiolm_lite.modeling.attention import set_attention
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.modeling.llm_layers import word_embeddings
from audiolm_lite.modeling.logits import llm_logits, logit_rescaling
from audiolm_lite.training.distillation import Distillation
from tests.tiny import ATTENTION_LLMS, RECURRENT_LLMS, tiny_family, tiny_llm

DIM, VOCABULARY = 16, 50
KINDS = [*ATTENTION_LLMS, *RECURRENT_LLMS]
SCALED = ["granite", "cohere", "gemma2", "falcon_h1"]


def make_model(kind, **options):
    llm = tiny_family(kind, VOCABULARY)
    torch.manual_seed(4)
    return AudioLanguageModel(LinearStack(DIM, 1, llm.config.hidden_size, stride=1), llm, **options).eval()


def make_item(frames, text=3, answer=4):
    generator = torch.Generator().manual_seed(100 * frames + text)
    prompt = [3, *[AUDIO_SLOT] * frames, *torch.randint(3, VOCABULARY, (text,), generator=generator).tolist()]
    reply = torch.randint(3, VOCABULARY, (answer,), generator=generator).tolist()
    features = torch.randn(1, frames, DIM, generator=generator)
    return Item({"id": f"{frames}-{text}"}, prompt + reply, [IGNORE] * len(prompt) + reply, features=features)


FUSED: dict[str, AudioLanguageModel] = {}
ITEMS = [make_item(2), make_item(11, text=5), make_item(6, answer=7)]  # longer than the windows of 4 tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradient_equal_those_of_transformers(kind, side):
    """Of a padded batch, in chunks of two positions, against each item alone through the LLM's own forward pass."""
    model = make_model(kind, loss_chunk=2)
    loss = model.loss(collate(ITEMS, side=side))
    loss.total.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total, correct = 0, 0
    for item in ITEMS:
        batch = collate([item])
        logits = model.llm(inputs_embeds=model.embed(batch), use_cache=False).logits[0, :-1]
        targets = batch.labels[0, 1:]
        total = total + F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")
        correct += int((logits.argmax(-1) == targets).sum())
    total.backward()
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=1e-4)
    assert (int(loss.tokens), int(loss.correct)) == (15, correct)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mistral", "gpt_oss", "granite", "deepseek_v3"])
@pytest.mark.parametrize("attention", ["eager", "matmul"])
def test_matmul_attention_and_packing_change_nothing(kind, attention):
    model = make_model(kind)
    expected = model.loss(collate(ITEMS)).total
    set_attention(model.llm, attention)
    for batch in (collate(ITEMS), pack(collate(ITEMS))):
        torch.testing.assert_close(model.loss(batch).total, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(RECURRENT_LLMS))
def test_recurrent_llms_refuse_packed_batches(kind):
    with pytest.raises(ValueError, match="recurrent layers, which would read from one item"):
        make_model(kind).loss(pack(collate(ITEMS)))


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_logits(kind):
    """Through a LoRA, in both dtypes; the fused loss, which gets no logits, is refused."""
    llm = get_peft_model(tiny_family(kind, VOCABULARY), LoraConfig(r=2, target_modules=["q_proj"]))
    hidden = torch.randn(2, 3, 32)
    raw = llm.get_base_model().get_output_embeddings()(hidden)
    expected = {
        "granite": lambda: raw / 4.0,
        "cohere": lambda: 0.25 * raw,
        "gemma2": lambda: 3.0 * (raw / 3.0).tanh(),
        "falcon_h1": lambda: 0.3 * raw,
    }[kind]()
    torch.testing.assert_close(llm_logits(llm, hidden), expected)
    assert llm_logits(llm.bfloat16(), hidden.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="loss_kernel torch.*use chunked"):
        make_model(kind, loss_kernel="torch")


def test_plain_logits_are_those_of_the_output_layer():
    assert all(logit_rescaling(tiny_family(kind, VOCABULARY)) is None for kind in ("mistral", "gpt_oss", "lfm2"))


def test_the_same_field_may_multiply_or_divide():
    entries = {"pad_token_id": 0, "logits_scaling": 4.0}
    hyperclovax, granite = (tiny_llm(VOCABULARY, kind=kind, **entries) for kind in ("hyperclovax", "granite"))
    ones = torch.ones(VOCABULARY)
    assert logit_rescaling(hyperclovax)(ones)[0] == 4 and logit_rescaling(granite)(ones)[0] == 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_embedded_as_by_the_llm_itself(kind):
    """And audio tokens are inserted as the adapter returns them: neither Gemma nor the splice multiplies them."""
    model = make_model(kind)
    ids = torch.tensor([[3, 9, 4, 8, 30, 7]])
    embedded = word_embeddings(model.llm, ids)
    ours, theirs = model.llm(inputs_embeds=embedded, use_cache=False), model.llm(input_ids=ids, use_cache=False)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    batch = collate([ITEMS[0]])
    inserted = model.embed(batch)
    torch.testing.assert_close(inserted[:, 1:3], model.audio_tokens(batch)[0])
    torch.testing.assert_close(inserted[:, 3:], word_embeddings(model.llm, batch.input_ids[:, 3:]))


def test_the_teacher_of_a_distillation_scales_its_logits_too():
    """The student is its own teacher here, so the divergence must vanish."""
    model = make_model("gemma2")
    batch = collate(ITEMS)
    distillation = Distillation.__new__(Distillation)
    distillation.weight, distillation.temperature = 1.0, 2.0
    distillation.text_batch = lambda given: given
    assert abs(float(model.loss(batch, distillation).total.detach())) < 1e-4


def test_llms_without_room_for_audio_tokens_are_refused():
    llm = tiny_family("gemma3_text", VOCABULARY)
    llm.config.hidden_size_per_layer_input = 8  # as in Gemma 3n: a vector per layer by token id
    with pytest.raises(ConfigError, match="embeddings of every layer by token id"):
        AudioLanguageModel(LinearStack(DIM, 1, 32), llm)


@pytest.mark.parametrize("kind", ["cohere2", "gemma3_text", "qwen2"])
@settings(max_examples=5, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_packing_separates_items_under_the_fused_attention(kind, lengths):
    model = FUSED.setdefault(kind, make_model(kind))
    assert model.llm.config._attn_implementation == "sdpa"
    items = [make_item(length) for length in lengths]
    alone = sum(model.loss(collate([item])).total for item in items)
    torch.testing.assert_close(model.loss(pack(collate(items))).total, alone, rtol=1e-5, atol=1e-4)
