"""LLMs with windows, scaled logits, sinks and recurrent layers: decoded as transformers decodes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.decoding import DecodeState, beam_search, decode_step, generate, prefill
from audiolm_lite.decoding.state import check_decoding
from audiolm_lite.deploy.backends import BackendError, _export, make_backend
from audiolm_lite.modeling.llm_layers import word_embeddings
from tests.tiny import ATTENTION_LLMS, GROUPED, RECURRENT_LLMS, tiny_family, tiny_llm

VOCABULARY, EOS = 61, 2
KINDS = [*ATTENTION_LLMS, *RECURRENT_LLMS]
LENGTHS = [3, 14, 9]  # the windows have 4 tokens


def make_prompts(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, GROUPED["hidden_size"], generator=generator) for length in lengths]


def collate(prompts, side):
    """A padded batch; the padding must not be read, not even multiplied by 0."""
    longest = max(map(len, prompts))
    embeds = torch.full((len(prompts), longest, prompts[0].shape[1]), float("nan"))
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        span = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        embeds[row, span], mask[row, span] = prompt, True
    return embeds, mask


def transformers_answer(llm, prompt, **options):
    tokens = llm.generate(
        inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        eos_token_id=EOS, pad_token_id=0, bos_token_id=1, **options,
    )[0].tolist()  # fmt: skip
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_equal_the_forward_pass_of_transformers(kind, side):
    llm = tiny_family(kind, VOCABULARY)
    prompts = make_prompts(LENGTHS)
    tokens = torch.randint(3, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    state = DecodeState.allocate(llm, 3, 24)
    steps = [prefill(llm, state, *collate(prompts, side))]
    steps += [decode_step(llm, state, token) for token in tokens.T]
    assert state.position.tolist() == [9, 20, 15] and state.max_length == 24 and state.batch_size == 3
    for row, prompt in enumerate(prompts):
        sequence = torch.cat([prompt, word_embeddings(llm, tokens[row])])
        expected = llm(inputs_embeds=sequence[None], use_cache=False).logits[0, -7:]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_equal_transformers(kind):
    """From token ids, so the scale of the embeddings is compared too."""
    llm = tiny_family(kind, VOCABULARY)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    with torch.no_grad():
        batch = collate([word_embeddings(llm, prompt) for prompt in ids], "left")
    answers = generate(llm, *batch, max_new_tokens=10, eos_ids=EOS)
    options = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": EOS, "pad_token_id": 0}
    for prompt, answer in zip(ids, answers):
        tokens = llm.generate(prompt[None], **options)[0, len(prompt) :].tolist()
        assert answer == (tokens[: tokens.index(EOS)] if EOS in tokens else tokens)
    assert len(set(map(tuple, answers))) == 3


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "qwen3_5_text", "lfm2"])
def test_beams_equal_transformers(kind):
    llm = tiny_family(kind, VOCABULARY)
    prompts = make_prompts(LENGTHS)
    ours = beam_search(llm, *collate(prompts, "right"), beams=3, max_new_tokens=7, eos_ids=EOS)
    assert ours == [transformers_answer(llm, prompt, max_new_tokens=7, num_beams=3) for prompt in prompts]
    state = DecodeState.allocate(llm, 11, 30)  # a given cache, with spare rows
    again = beam_search(llm, *collate(prompts, "left"), beams=3, max_new_tokens=7, eos_ids=EOS, state=state)
    assert again == ours


RECURRENT = {kind: tiny_family(kind, VOCABULARY) for kind in ("qwen3_5_text", "lfm2")}


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(sorted(RECURRENT)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    padded=st.booleans(),
)
def test_a_row_of_a_recurrent_llm_does_not_depend_on_the_batch(kind, lengths, side, padded):
    """Neither where rows are padded on the left, nor where rows of equal length are one batch each."""
    llm = RECURRENT[kind]
    prompts = make_prompts(lengths)
    with pytest.MonkeyPatch.context() as patch:
        if not padded:
            patch.setattr("audiolm_lite.decoding.growing_cache._EXACT", set())
        together = generate(llm, *collate(prompts, side), max_new_tokens=5, eos_ids=EOS)
        beams = beam_search(llm, *collate(prompts, side), beams=2, max_new_tokens=4, eos_ids=EOS)
    for prompt, answer, best in zip(prompts, together, beams):
        alone = prompt[None], torch.ones(1, len(prompt))
        assert generate(llm, *alone, max_new_tokens=5, eos_ids=EOS) == [answer]
        assert beam_search(llm, *alone, beams=2, max_new_tokens=4, eos_ids=EOS) == [best]


@pytest.mark.parametrize("kind", ["gemma2", "deepseek_v3"])
@torch.no_grad()
def test_exported_graphs_give_the_same_logits(kind):
    """What the compiled backends compile, for prompts longer than the window."""
    llm = tiny_family(kind, VOCABULARY)
    state, other = DecodeState.allocate(llm, 2, 20), DecodeState.allocate(llm, 2, 20)
    batch = collate(make_prompts([5, 11]), "left")
    batch = batch[0].nan_to_num(), batch[1]
    prefill(llm, state, *batch)
    graphs = _export(llm, state)
    run = [graphs[name].module() for name in ("prefill", "decode_step")]
    for _ in range(2):
        given = run[0](state.keys, state.values, state.position, *batch)
        torch.testing.assert_close(given, prefill(llm, other, *batch), rtol=0, atol=1e-5)
        for token in (torch.tensor([4, 9]), torch.tensor([30, 7])):
            given = run[1](state.keys, state.values, state.position, token)
            torch.testing.assert_close(given, decode_step(llm, other, token), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["inductor", "aoti"])
def test_compiled_backends_refuse_recurrent_llms(backend, monkeypatch):
    monkeypatch.setattr(
        "audiolm_lite.deploy.backends.available_backends", lambda device: dict.fromkeys([backend, "eager"])
    )
    with pytest.raises(BackendError, match=f"{backend} cannot compile an LLM with recurrent layers.*use eager"):
        make_backend(backend, RECURRENT["lfm2"], 1, 16)


def test_the_best_backend_of_a_recurrent_llm_is_eager():
    assert make_backend("best", RECURRENT["lfm2"], 1, 32).name == "eager"


@pytest.mark.parametrize(
    "kind, entries, message",
    [
        ("bert", {"is_decoder": True}, "output layer does not follow its layers directly"),
        ("mamba", {}, "takes no position_ids"),
        ("bloom", {}, "takes no position_ids"),
        ("recurrent_gemma", {"head_dim": 8}, "its cache is not supported"),
        ("llama", {"sliding_window": 8}, "layers of the kind sliding_attention are not supported in this LLM"),
        ("llama", {"layer_types": ["linear_attention"] * 2}, "linear_attention are not supported"),
        ("qwen3", {"layer_types": ["indexed_attention"] * 2}, "indexed_attention are not supported"),
    ],
)
def test_other_llms_are_refused(kind, entries, message):
    llm = tiny_llm(VOCABULARY, kind=kind, pad_token_id=0, **entries)
    with pytest.raises(ValueError, match=message):
        check_decoding(llm, 1)
