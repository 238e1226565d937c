"""Guards against runaway answers: loops end and are cut, other answers stay, on every way to generate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, NoRepeatNGramLogitsProcessor

from audiolm_lite.decoding import DecodeState, Sampling, beam_search, decode_step, generate
from audiolm_lite.decoding.repetition import NO_TOKEN, WINDOW, ban_repeated_ngrams, cut_loop, is_looping
from tests.decoding.test_beam import EOS, LLM, collate, make_prompts

VOCABULARY = 32


def follower(cycle=()):
    """An LLM without context: token n + 1 follows n, and the last of `cycle` is followed by its first."""
    sizes = {"hidden_size": VOCABULARY, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, initializer_range=0.0))
    llm.model.embed_tokens.weight.data = torch.eye(VOCABULARY)
    successors = torch.eye(VOCABULARY).roll(1, 0)
    if cycle:
        successors[:, cycle[-1]] = torch.eye(VOCABULARY)[:, cycle[0]]
    llm.lm_head.weight.data = successors
    return llm.eval().requires_grad_(False)


def prompt(*tokens):
    return torch.eye(VOCABULARY)[None, list(tokens)], torch.ones(1, len(tokens))


def tail_of(tokens):
    return torch.tensor(([NO_TOKEN] * WINDOW + list(tokens))[-WINDOW:])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=18), st.integers(1, 30)
)
def test_the_device_finds_a_loop_at_the_same_token_as_the_host(start, ngram, repeats):
    tokens = start + ngram * repeats
    found = False
    for size in range(1, len(tokens) + 1):
        found |= bool(is_looping(tail_of(tokens[:size])))
        assert found == cut_loop(tokens[:size])[1]


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        pytest.param([1, 2] + [3] * 24, [1, 2, 3], id="a word"),
        pytest.param([1, 2] + [3, 4] * 12, [1, 2, 3, 4], id="two words"),
        pytest.param([9] + list(range(10, 26)) * 3, [9, *range(10, 26)], id="a sentence of 16 tokens"),
        pytest.param([9] + list(range(10, 16)) * 9, [9, *range(10, 16)], id="a sentence of 6 tokens"),
        pytest.param([3] * 99 + [1, 2], [3], id="the answer goes on"),
    ],
)
def test_repeats_after_the_first_are_cut(tokens, kept):
    assert cut_loop(tokens) == (kept, True)


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param([7, 7, 7], id="no no no"),
        pytest.param([5] * 20, id="a long number of one digit"),
        pytest.param([4, 2] * 8, id="card number 4242 ..."),
        pytest.param([1, 5] * 11, id="letters with spaces"),
        pytest.param(list(range(12)) * 2, id="a refrain of two lines"),
        pytest.param(list(range(17)) * 5, id="a period above 16"),
        pytest.param([], id="nothing"),
    ],
)
def test_answers_that_people_give_stay(tokens):
    assert cut_loop(tokens) == (tokens, False)


def count_steps():
    steps = []

    def counting_step(llm, state, token):
        steps.append(len(token))
        return decode_step(llm, state, token)

    return steps, counting_step


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.01)], ids=["greedy", "sampled"])
def test_a_looping_row_ends_and_the_others_go_on(sampling):
    llm = follower(cycle=(5, 6, 7))
    steps, counting_step = count_steps()
    embeds = torch.cat([prompt(2, 5)[0], prompt(1, 9)[0]])
    options = {"eos_ids": 20, "sampling": sampling, "decode_step": counting_step, "stop_loops": True}
    looping, other = generate(llm, embeds, torch.ones(2, 2), max_new_tokens=60, **options)
    assert cut_loop(looping) == ([6, 7, 5], True)
    assert other == list(range(10, 20))
    assert len(steps) == 23
    assert len(generate(llm, *prompt(2, 5), max_new_tokens=60, **options)[0]) == 24
    assert len(generate(llm, *prompt(2, 5), max_new_tokens=60, eos_ids=20)[0]) == 60


def test_a_looping_hypothesis_ends_a_beam_search():
    llm = follower(cycle=(5, 6, 7))
    steps, counting_step = count_steps()
    options = {"beams": 2, "eos_ids": 20, "decode_step": counting_step, "max_new_tokens": 60, "stop_loops": True}
    embeds = torch.cat([prompt(2, 5)[0], prompt(1, 9)[0]])
    looping, other = beam_search(llm, embeds, torch.ones(2, 2), **options)
    assert cut_loop(looping) == ([6, 7, 5], True) and other == list(range(10, 20))
    assert [looping] == beam_search(llm, *prompt(2, 5), **options)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), beams=st.sampled_from([1, 3]), spare=st.booleans())
def test_limits_and_guards_are_those_of_the_row(lengths, beams, spare):
    """Every row has its own limit, and its answer is the one that it gets alone."""
    prompts = make_prompts(lengths)
    limits = [4 + 9 * index for index in range(len(lengths))]
    guards = {"stop_loops": True, "eos_ids": [EOS]}

    def run(embeds, mask, limits, state=None):
        if beams > 1:
            options = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3}
            return beam_search(LLM, embeds, mask, beams=beams, max_new_tokens=limits, state=state, **options, **guards)
        sampling = Sampling(temperature=0, repetition_penalty=1.1, no_repeat_ngram_size=3)
        return generate(LLM, embeds, mask, max_new_tokens=limits, sampling=sampling, state=state, **guards)

    state = DecodeState.allocate(LLM, beams * len(prompts) + 2, 60) if spare else None
    together = run(*collate(prompts, "left"), limits, state)
    assert all(len(answer) <= limit for answer, limit in zip(together, limits))
    assert together == [run(p[None], torch.ones(1, len(p)), [limit])[0] for p, limit in zip(prompts, limits)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3), st.integers(1, 5))
def test_ngrams_are_banned_as_in_transformers(rows, size):
    tokens, scores = torch.tensor(rows), torch.randn(len(rows), 5)
    for length in range(len(rows[0]) + 1):
        expected = NoRepeatNGramLogitsProcessor(size)(tokens[:, :length], scores.clone())
        torch.testing.assert_close(ban_repeated_ngrams(scores, tokens[:, :length], size), expected, rtol=0, atol=0)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("guards", [{"repetition_penalty": 1.6}, {"no_repeat_ngram_size": 2}])
def test_penalty_and_banned_ngrams_equal_transformers(beams, guards):
    prompts = [p for seed in range(4) for p in make_prompts([3, 9, 5], seed)]
    plain = {"max_new_tokens": 14, "eos_ids": EOS}

    def ours(**guards):
        if beams > 1:
            return beam_search(LLM, *collate(prompts, "left"), beams=beams, **plain, **guards)
        return generate(LLM, *collate(prompts, "left"), sampling=Sampling(temperature=0, **guards), **plain)

    def theirs(embeds):
        tokens = LLM.generate(
            inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(embeds), dtype=torch.long), do_sample=False,
            num_beams=beams, max_new_tokens=14, eos_token_id=EOS, pad_token_id=0, bos_token_id=1, **guards,
        )[0].tolist()  # fmt: skip
        return tokens[: tokens.index(EOS)] if EOS in tokens else tokens

    assert ours(**guards) == [theirs(p) for p in prompts]
    assert ours(**guards) != ours()


def test_unusable_limits_are_refused():
    with pytest.raises(ValueError, match="generate: 3 limits for a batch of 1 rows"):
        generate(LLM, torch.zeros(1, 2, 32), torch.ones(1, 2), max_new_tokens=[1, 2, 3], eos_ids=1)
    with pytest.raises(ValueError, match="beam_search: max_new_tokens must be at least 1, not 0"):
        beam_search(LLM, torch.zeros(1, 2, 32), torch.ones(1, 2), beams=2, max_new_tokens=0, eos_ids=1)
