"""Transformer blocks: finding, recomputing and compiling them."""

import pytest
import torch

from audiolm_lite.modeling.transformer_blocks import checkpoint_activations, compile_blocks, find_blocks
from tests.tiny import tiny_llm

peft = pytest.importorskip("peft")


def make_llm(layers=3, lora=True):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": layers, "initializer_range": 0.02}
    llm = tiny_llm(20, seed=0, **sizes).requires_grad_(False)
    return peft.get_peft_model(llm, peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"])) if lora else llm


def gradients(llm, embedded):
    """Gradients of inputs and weights, and the blocks that ran, in order."""
    torch.manual_seed(1)  # dropout
    calls = []
    hooks = [b.mlp.register_forward_pre_hook(lambda *_, i=i: calls.append(i)) for i, b in enumerate(find_blocks(llm))]
    embedded = embedded.clone().requires_grad_()
    llm(inputs_embeds=embedded, use_cache=False).logits.square().sum().backward()
    for hook in hooks:
        hook.remove()
    return embedded.grad, [p.grad for p in llm.parameters() if p.requires_grad], calls


@pytest.mark.parametrize(("every", "recomputed"), [(1, [2, 1, 0]), (2, [2, 0])])
@pytest.mark.parametrize("lora", [True, False])
def test_recomputed_blocks_give_the_same_gradients(every, recomputed, lora):
    embedded = torch.randn(2, 5, 8)
    inputs, weights, calls = gradients(make_llm(lora=lora), embedded)
    assert calls == [0, 1, 2]
    llm = make_llm(lora=lora)
    checkpoint_activations(llm, every)
    if not lora:
        llm.eval()  # as AudioLanguageModel.train does with frozen modules
    new_inputs, new_weights, new_calls = gradients(llm, embedded)
    assert new_calls == [0, 1, 2, *recomputed]
    assert torch.equal(inputs, new_inputs)
    assert all(torch.equal(first, second) for first, second in zip(weights, new_weights, strict=True))


def test_blocks_use_one_compiled_graph_and_are_recomputed(monkeypatch):
    """The compiler backend only counts graphs: a real one takes minutes."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    def gradient(llm, embedded):
        embedded = embedded.clone().requires_grad_()
        llm(inputs_embeds=embedded, use_cache=False).logits.square().sum().backward()
        return embedded.grad

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, backend=count, **options))
    plain, llm = make_llm(layers=3, lora=False), make_llm(layers=3, lora=False)
    compile_blocks(llm)
    checkpoint_activations(llm, 1)
    for length in (5, 7, 9):
        embedded = torch.randn(2, length, 8)
        torch.testing.assert_close(gradient(llm, embedded), gradient(plain, embedded))
    assert len(graphs) == 1  # for three blocks and three lengths


def test_blocks_are_the_outermost_list():
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(5)])
    outer = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": inner, "norm": torch.nn.LayerNorm(2)})])
    assert find_blocks(torch.nn.Sequential(outer)) == [outer[0]]
    assert find_blocks(torch.nn.Linear(2, 2)) == []
