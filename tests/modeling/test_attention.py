"""Attention as matrix products gives the loss and gradients of transformers' attention, and is chosen where it pays."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from audiolm_lite.modeling.attention import prefers_matmul, set_attention
from tests.tiny import GROUPED


def make_llm(**settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **GROUPED, **settings)).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_gradients_equal_those_of_the_eager_attention(side):
    ids = torch.arange(20).reshape(2, 10)
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, :4] = 0
    mask = mask if side == "left" else mask.flip(1)
    results = {}
    for attention in ("eager", "matmul"):
        llm = make_llm(initializer_range=0.3)
        set_attention(llm, attention)
        logits = llm(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        logits.logsumexp(-1).sum().backward()
        results[attention] = logits, llm.model.layers[0].self_attn.k_proj.weight.grad
    for ours, theirs in zip(results["matmul"], results["eager"]):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_chosen_attention_is_kept():
    llm = make_llm()
    set_attention(llm, "eager")
    assert not prefers_matmul(llm, "cpu", "bf16")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    assert prefers_matmul(gpt2, "cpu", "bf16")
    gpt2._supports_attention_backend = False  # an architecture whose attention cannot be exchanged
    assert not prefers_matmul(gpt2, "cpu", "bf16")
