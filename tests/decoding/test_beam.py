"""Beam search: equal to that of transformers, independent of the batch and of the cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.decoding import DecodeState, beam_search, generate
from tests.tiny import GROUPED, tiny_llm

EOS = 7


def make_llm():
    return tiny_llm(23, seed=0, **GROUPED, max_position_embeddings=128).eval()


LLM = make_llm()


def make_prompts(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, GROUPED["hidden_size"], generator=generator) for length in lengths]


def collate(prompts, side="right"):
    longest = max(len(prompt) for prompt in prompts)
    embeds, mask = torch.zeros(len(prompts), longest, 32), torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        span = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        embeds[row, span], mask[row, span] = prompt, True
    return embeds, mask


def transformers_beams(prompt, beams, max_new_tokens, length_penalty, eos=(EOS,)):
    tokens = LLM.generate(
        inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        num_beams=beams, length_penalty=length_penalty, max_new_tokens=max_new_tokens, eos_token_id=list(eos),
        pad_token_id=0, bos_token_id=1,
    )[0].tolist()  # fmt: skip
    return next((tokens[:place] for place, token in enumerate(tokens) if token in eos), tokens)


@pytest.mark.parametrize(("beams", "length_penalty"), [(2, 1.0), (4, 1.0), (4, 0.0), (3, 2.0), (4, -0.5)])
def test_equals_transformers(beams, length_penalty):
    prompts = [prompt for seed in range(6) for prompt in make_prompts([3, 9, 5], seed)]
    options = {"beams": beams, "max_new_tokens": 9, "length_penalty": length_penalty}
    ours = beam_search(LLM, *collate(prompts, "left"), eos_ids=EOS, **options)
    theirs = [transformers_beams(prompt, beams, 9, length_penalty) for prompt in prompts]
    assert ours == theirs
    assert len(set(map(tuple, ours))) > 9, "too few different answers for a meaningful comparison"


@pytest.mark.parametrize(("beams", "ends"), [(2, 3), (3, 5), (4, 12)])
def test_several_end_tokens_leave_enough_hypotheses_that_go_on(beams, ends):
    """With many end tokens, most candidates of each beam end."""
    eos = list(range(3, 3 + ends))
    prompts = [prompt for seed in range(6) for prompt in make_prompts([3, 9, 5], seed)]
    options = {"beams": beams, "max_new_tokens": 9, "length_penalty": 2.0}
    ours = beam_search(LLM, *collate(prompts, "left"), eos_ids=eos, **options)
    assert ours == [transformers_beams(prompt, beams, 9, 2.0, eos) for prompt in prompts]
    assert ours == beam_search(LLM, *collate(prompts, "left"), eos_ids=eos, stop_loops=True, **options)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_row_does_not_depend_on_the_batch_or_the_cache(lengths, side):
    prompts = make_prompts(lengths)
    options = {"beams": 3, "max_new_tokens": 6, "eos_ids": [EOS, 11]}
    together = beam_search(LLM, *collate(prompts, side), **options)
    assert together == [beam_search(LLM, prompt[None], torch.ones(1, len(prompt)), **options)[0] for prompt in prompts]
    state = DecodeState.allocate(LLM, 3 * len(prompts) + 2, 30)  # spare rows and capacity, as in a compiled backend
    assert beam_search(LLM, *collate(prompts, side), state=state, **options) == together


def test_answers_are_likelier_than_those_of_greedy_search():
    def log_probability(prompt, answer):
        embeds = torch.cat([prompt, LLM.get_input_embeddings()(torch.tensor(answer))])[None]
        scores = LLM(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(scores.gather(1, torch.tensor(answer)[:, None]).sum())

    prompts = make_prompts([4, 6, 8, 5, 7])
    with torch.no_grad():
        beam = beam_search(LLM, *collate(prompts), beams=5, max_new_tokens=5, eos_ids=[])
        greedy = generate(LLM, *collate(prompts), max_new_tokens=5, eos_ids=[])
        gains = [log_probability(p, b) - log_probability(p, g) for p, b, g in zip(prompts, beam, greedy)]
    assert min(gains) > -1e-4 and max(gains) > 0.1


def test_unusable_input_is_refused():
    embeds, mask = collate(make_prompts([3, 4]))
    options = {"beams": 2, "max_new_tokens": 4, "eos_ids": EOS}
    with pytest.raises(ValueError, match="1 beams; give at least 2"):
        beam_search(LLM, embeds, mask, **options | {"beams": 1})
    with pytest.raises(ValueError, match="do not fit a cache of 3 rows"):
        beam_search(LLM, embeds, mask, state=DecodeState.allocate(LLM, 3, 20), **options)
    with pytest.raises(ValueError, match="empty"):
        beam_search(LLM, embeds, mask & False, **options)
    with pytest.raises(ValueError, match="training mode"):
        beam_search(make_llm().train(), embeds, mask, **options)
