"""The audio language model: splice, loss, and independence of logits and loss from padding and batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.data.batching import Item, collate, pack
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from tests.tiny import GROUPED, tiny_llm

DIM, LAYERS, VOCABULARY = 16, 2, 50
SIZES = {**GROUPED, "attention_dropout": 0.5}  # so that a frozen LLM left in training mode is noticed


def make_llm(kind="llama"):
    llm = tiny_llm(VOCABULARY, seed=3, kind=kind, **SIZES)
    for parameter in llm.parameters():  # far from uniform attention, so that a wrong mask shows
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.3 * parameter.shape[-1] ** -0.5)
    return llm


def make_model(kind="llama", lora=False):
    llm = make_llm(kind)
    if lora:
        llm = get_peft_model(llm, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(4)
    return AudioLanguageModel(TLTR(DIM, LAYERS, SIZES["hidden_size"], layer_heads=4), llm).eval()


def make_item(frames, text=3, answer=2, seed=0):
    generator = torch.Generator().manual_seed(seed + 100 * frames + text)

    def words(n):
        return torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()

    prompt = [1, *words(2), *[AUDIO_SLOT] * frames, *words(text)]
    reply = words(answer)
    features = torch.randn(LAYERS, frames, DIM, generator=generator)
    return Item({"id": f"{frames}-{text}"}, prompt + reply, [IGNORE] * len(prompt) + reply, features=features)


def full_logits(model, batch):
    """Logits [B, S, V] of all positions."""
    return model.llm.get_output_embeddings()(model.hidden(batch))


shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5)), min_size=1, max_size=4)


# gpt2 has absolute positions: with relative rotary positions, counting the padding would not show
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@settings(max_examples=10, deadline=None)
@given(shapes=shapes, side=st.sampled_from(["left", "right"]))
def test_logits_and_loss_do_not_depend_on_padding_or_batch(kind, shapes, side):
    model = make_model(kind)
    items = [make_item(*shape, seed=i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        batch = collate(items, side=side)
        together, loss = full_logits(model, batch), model.loss(batch)
        alone = [model.loss(collate([item])) for item in items]
        for item, row, mask in zip(items, together, batch.attention_mask):
            torch.testing.assert_close(full_logits(model, collate([item]))[0], row[mask], rtol=0, atol=5e-5)
    torch.testing.assert_close(loss.total, sum(single.total for single in alone), rtol=1e-5, atol=1e-5)
    assert loss.tokens == sum(single.tokens for single in alone) == sum(answer for _, _, answer in shapes)
    assert loss.correct == sum(single.correct for single in alone)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "matmul"])
@settings(max_examples=6, deadline=None)
@given(shapes=shapes)
def test_packing_changes_neither_loss_nor_gradient(kind, attention, shapes):
    model = make_model(kind)
    model.llm.set_attn_implementation(attention)
    batch = collate([make_item(*shape, seed=i) for i, shape in enumerate(shapes)])
    batch.labels[:, 0] = batch.input_ids[:, 0]  # a first token without a token before it
    results = []
    for form in (batch, pack(batch)):
        model.zero_grad()
        loss = model.loss(form)
        loss.total.backward()
        results.append((loss, model.adapter.projection.weight.grad.clone()))
    (padded, gradient), (packed, other) = results
    torch.testing.assert_close(padded.total, packed.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)
    assert padded.tokens == packed.tokens and padded.correct == packed.correct
    assert pack(batch).input_ids.shape == (1, batch.attention_mask.sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradient_equal_full_logits(side):
    model = make_model()
    batch = collate([make_item(4), make_item(7, text=5, answer=4)], side=side)
    loss = model.loss(batch)
    loss.total.backward()
    gradient = model.adapter.projection.weight.grad.clone()
    model.zero_grad()
    logits = full_logits(model, batch)
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
    plain.backward()
    torch.testing.assert_close(loss.total, plain, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient, model.adapter.projection.weight.grad, rtol=1e-4, atol=1e-6)
    supervised = batch.labels[:, 1:] != IGNORE
    right = (logits[:, :-1].argmax(-1) == batch.labels[:, 1:]) & supervised
    assert loss.tokens == supervised.sum() == 6 and loss.correct == right.sum()


def test_loss_equals_that_of_transformers():
    """A batch of one, whose labels transformers averages."""
    model = make_model()
    batch = collate([make_item(5, answer=4)])
    loss = model.loss(batch)
    reference = model.llm(inputs_embeds=model.embed(batch), labels=batch.labels).loss
    torch.testing.assert_close(loss.total / loss.tokens, reference)


def test_audio_tokens_fill_their_slots_in_order():
    model = make_model()
    items = [make_item(3), make_item(6, text=1)]
    batch = collate(items, side="left")
    with torch.no_grad():
        embedded = model.embed(batch)
        for item, row, ids in zip(items, embedded, batch.input_ids):
            tokens, _ = model.adapter(item.features[None], torch.tensor([item.features.shape[1]]))
            torch.testing.assert_close(row[ids == AUDIO_SLOT], tokens[0])
            words = ids != AUDIO_SLOT
            torch.testing.assert_close(row[words], model.embedding(ids[words]))


def test_a_first_token_without_context_is_never_supervised():
    """With left padding it would be predicted from a pad, with right padding from nothing."""
    model = make_model()
    item = make_item(2)
    item.labels = list(item.input_ids)
    item.labels[3:5] = [IGNORE] * 2
    totals = [model.loss(collate([item, make_item(9)], side=side)).total for side in ("left", "right")]
    torch.testing.assert_close(*totals)


def test_a_wrong_number_of_slots_is_an_error():
    item = make_item(4)
    item.input_ids[3] = 7
    with pytest.raises(ValueError, match="4 audio tokens.*3 slots"):
        make_model().loss(collate([item]))


def test_waveforms_go_through_the_encoder():
    class Frames(nn.Module):
        def forward(self, waveforms, samples):
            return waveforms.unflatten(1, (-1, DIM))[:, None].expand(-1, LAYERS, -1, -1), samples // DIM

    waveform = torch.randn(4 * DIM)
    item = make_item(4)
    with_wave = Item(item.row, item.input_ids, item.labels, waveform=waveform)
    item.features = waveform.view(1, 4, DIM).expand(LAYERS, -1, -1)
    model = make_model()
    with pytest.raises(ValueError, match="no encoder"):
        model.loss(collate([with_wave]))
    expected = model.loss(collate([item])).total
    model.encoder = Frames()
    torch.testing.assert_close(model.loss(collate([with_wave])).total, expected)


def test_half_precision_features_and_llm():
    model = make_model()
    model.llm.to(torch.bfloat16)
    item = make_item(4)
    item.features = item.features.half()
    loss = model.loss(collate([item]))
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()


def test_frozen_parts_stay_in_eval_mode():
    model = make_model(lora=True)
    model.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(False)
    model.adapter.requires_grad_(False)
    model.adapter.projection.requires_grad_(True)
    model.train()
    assert not any(module.training for module in model.encoder.modules())
    assert model.adapter.projection.training and not model.adapter.time_block.training
    layer = model.causal_lm.model.layers[0]
    assert layer.self_attn.q_proj.lora_dropout["default"].training and not layer.mlp.training
    assert not any(module.training for module in model.eval().modules())

    # A frozen LLM computes the same in training mode as in eval mode, and gets no gradient.
    model = make_model()
    model.llm.requires_grad_(False)
    batch = collate([make_item(4)])
    expected = model.eval().loss(batch).total
    loss = model.train().loss(batch).total
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.adapter.projection.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.llm.parameters())


def test_the_loss_uses_the_lora():
    """The loss calls the LLM inside PEFT's wrapper, and the LoRA is still active."""
    model = make_model(lora=True)
    batch = collate([make_item(4)])
    before = model.loss(batch).total
    torch.testing.assert_close(before, make_model().loss(batch).total)  # lora_B starts at zero
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    after = model.loss(batch).total
    assert (after - before).abs() > 1e-3
    after.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora_A" in name]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert model.embedding is model.llm.get_base_model().get_input_embeddings()
