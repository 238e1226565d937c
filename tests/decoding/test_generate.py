"""Generation over a static cache: equal to that of transformers, independent of the batch, reproducible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from audiolm_lite.decoding import DecodeState, Sampling, decode_step, generate, prefill
from audiolm_lite.decoding.generate import _Chooser, process_logits
from tests.tiny import GROUPED, tiny_llm

VOCABULARY = 61


def make_llm(**changes):
    sizes = {**GROUPED, "max_position_embeddings": 128}
    return tiny_llm(VOCABULARY, seed=0, **{**sizes, **changes}).eval()


LLM = make_llm()


def make_prompts(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, GROUPED["hidden_size"], generator=generator) for length in lengths]


def collate(prompts, side, filler=0.0):
    longest = max(len(prompt) for prompt in prompts)
    embeds = torch.full((len(prompts), longest, prompts[0].shape[1]), filler)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        span = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        embeds[row, span] = prompt
        mask[row, span] = True
    return embeds, mask


def transformers_greedy(llm, prompt, max_new_tokens, eos):
    """Answer of transformers to one prompt of at least 2 positions (4.57 repeats a single one at every step)."""
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    tokens = llm.generate(
        inputs_embeds=prompt[None], attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=eos, pad_token_id=eos, bos_token_id=1,
    )[0].tolist()  # fmt: skip
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def common_token(llm, prompts):
    """A token that ends some rows early and leaves others running."""
    rows = generate(llm, *collate(prompts, "right"), max_new_tokens=8, eos_ids=[])
    return rows[0][3]


@pytest.mark.parametrize("lengths", [[5], [2, 2], [3, 9, 6], [12, 2, 7, 7, 4]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_equals_transformers(lengths, side):
    prompts = make_prompts(lengths)
    eos = common_token(LLM, prompts)
    answers = generate(LLM, *collate(prompts, side), max_new_tokens=12, eos_ids=eos)
    assert answers == [transformers_greedy(LLM, prompt, 12, eos) for prompt in prompts]
    assert len(answers[0]) <= 3


@pytest.mark.parametrize(
    "llm",
    [
        pytest.param(make_llm(attn_implementation="eager"), id="llama-eager-attention"),
        pytest.param(make_llm(num_key_value_heads=4, tie_word_embeddings=True), id="mha"),
        pytest.param(make_llm(kind="qwen2"), id="qwen2"),
        pytest.param(make_llm(kind="qwen3", head_dim=16), id="qwen3"),
    ],
)
def test_other_models_equal_transformers(llm):
    prompts = make_prompts([4, 8, 2])
    answers = generate(llm, *collate(prompts, "left"), max_new_tokens=8, eos_ids=7)
    assert answers == [transformers_greedy(llm, prompt, 8, 7) for prompt in prompts]


def test_peft_wrapped_equals_transformers():
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    llm = get_peft_model(make_llm(), lora).eval()
    prompts = make_prompts([4, 8, 2])
    answers = generate(llm, *collate(prompts, "right"), max_new_tokens=8, eos_ids=7)
    assert answers == [transformers_greedy(llm, prompt, 8, 7) for prompt in prompts]
    assert answers != generate(LLM, *collate(prompts, "right"), max_new_tokens=8, eos_ids=7)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.sampled_from(["left", "right"]), st.booleans())
def test_row_does_not_depend_on_the_batch(lengths, side, sampled):
    """Other rows, the padding side and values in the padding have no effect, greedy or sampled."""
    prompts = make_prompts(lengths)
    seeds = [10 + row for row in range(len(lengths))]
    together = generate(
        LLM, *collate(prompts, side, filler=float("nan")), max_new_tokens=6, eos_ids=7,
        sampling=Sampling(temperature=2.0, top_p=0.9, seed=seeds) if sampled else None,
    )  # fmt: skip
    for prompt, seed, answer in zip(prompts, seeds, together):
        sampling = Sampling(temperature=2.0, top_p=0.9, seed=seed) if sampled else None
        assert generate(LLM, *collate([prompt], side), max_new_tokens=6, eos_ids=7, sampling=sampling) == [answer]


@torch.no_grad()
def test_logits_equal_the_full_forward_pass():
    """Prefill and steps give the logits of one pass over the full sequence, with rows at different positions."""
    prompts = make_prompts([3, 9, 1])
    embeds, mask = collate(prompts, "left")
    state = DecodeState.allocate(LLM, 3, 16)
    steps = [prefill(LLM, state, embeds, mask)]
    tokens = torch.tensor([[5, 6], [7, 8], [9, 10]])
    for token in tokens.T:
        steps.append(decode_step(LLM, state, token))
    assert state.position.tolist() == [5, 11, 3]
    for row, prompt in enumerate(prompts):
        sequence = torch.cat([prompt, LLM.get_input_embeddings()(tokens[row])])
        expected = LLM(inputs_embeds=sequence[None]).logits[0, -3:]
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), expected, rtol=0, atol=1e-5)


def test_used_and_larger_cache_has_no_effect():
    prompts = make_prompts([6, 2])
    expected = generate(LLM, *collate(prompts, "left"), max_new_tokens=5, eos_ids=[])
    state = DecodeState.allocate(LLM, 4, 30)
    generate(LLM, *collate(make_prompts([9, 9, 9, 9]), "left"), max_new_tokens=9, eos_ids=[], state=state)
    assert generate(LLM, *collate(prompts, "left"), max_new_tokens=5, eos_ids=[], state=state) == expected


def test_stops_when_every_row_has_finished():
    steps = []

    def counting_step(llm, state, token):
        steps.append(token)
        return decode_step(llm, state, token)

    prompts = make_prompts([5])
    eos = common_token(LLM, prompts)
    answer = generate(LLM, *collate(prompts, "left"), max_new_tokens=50, eos_ids=[eos, 3], decode_step=counting_step)[0]
    assert len(steps) == len(answer) <= 3  # the first token comes from prefill, the end token from the last step


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_are_float32(dtype):
    llm = make_llm().to(dtype)
    state = DecodeState.allocate(llm, 1, 8)
    with torch.no_grad():
        logits = prefill(llm, state, torch.randn(1, 3, 32).to(dtype), torch.ones(1, 3))
        assert logits.dtype == decode_step(llm, state, logits.argmax(-1)).dtype == torch.float32
    assert state.keys[0].dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.3},
    ],
)
def test_sampling_steps_equal_transformers(options):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, VOCABULARY, generator=generator) * 3
    generated = torch.randint(VOCABULARY, (4, 9), generator=generator)
    expected = logits.clone()
    for field, processor in [
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ]:
        if field in options:
            expected = processor(options[field])(generated, expected)
    seen = torch.zeros(4, VOCABULARY, dtype=torch.bool).scatter_(1, generated, True)
    torch.testing.assert_close(process_logits(logits, seen, Sampling(**options)), expected, rtol=0, atol=0)


def test_draws_follow_the_distribution():
    draws = 20_000
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0]).expand(draws, 5)
    sampling = Sampling(top_k=4)
    tokens = _Chooser(sampling, draws, 5, 1, torch.device("cpu"))(logits, torch.empty(draws, 0))
    frequency = torch.bincount(tokens, minlength=5) / draws
    probability = logits[0, :4].softmax(0)
    assert frequency[4] == 0
    assert ((frequency[:4] - probability).abs() < 4 * (probability * (1 - probability) / draws).sqrt()).all()


def test_sampling_is_reproducible_from_its_seed():
    prompts = collate(make_prompts([4, 4]), "left")
    options = {"max_new_tokens": 12, "eos_ids": []}
    first = generate(LLM, *prompts, sampling=Sampling(temperature=3.0, seed=1), **options)
    assert first == generate(LLM, *prompts, sampling=Sampling(temperature=3.0, seed=1), **options)
    assert first != generate(LLM, *prompts, sampling=Sampling(temperature=3.0, seed=9), **options)
    greedy = generate(LLM, *prompts, **options)
    assert generate(LLM, *prompts, sampling=Sampling(temperature=0), **options) == greedy
    assert generate(LLM, *prompts, sampling=Sampling(top_k=1, seed=4), **options) == greedy
    same = torch.stack([prompts[0][0]] * 2), prompts[1]
    one, other = generate(LLM, *same, sampling=Sampling(temperature=3.0), **options)
    assert one != other  # equal prompts in one batch get different answers


def test_repetition_penalty_forbids_repeats():
    sampling = Sampling(temperature=0, repetition_penalty=1e9)
    answer = generate(LLM, *collate(make_prompts([4]), "left"), max_new_tokens=15, eos_ids=[], sampling=sampling)[0]
    assert len(set(answer)) == 15


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, "row of attention_mask is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 500}, "beyond max_position_embeddings 128"),
        ({"state": DecodeState.allocate(LLM, 2, 4)}, "do not fit a cache of 2 rows of 4"),
        ({"sampling": Sampling(seed=[1])}, "1 seeds for a batch of 2"),
    ],
)
def test_unusable_input_is_refused(change, message):
    arguments = {"inputs_embeds": torch.zeros(2, 2, 32), "attention_mask": torch.ones(2, 2), "max_new_tokens": 5}
    with pytest.raises(ValueError, match=message):
        generate(LLM, **{**arguments, "eos_ids": 1, **change})


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        generate(make_llm().train(), torch.zeros(1, 2, 32), torch.ones(1, 2), max_new_tokens=1, eos_ids=1)


@pytest.mark.parametrize("field, value", [("temperature", -1), ("top_p", 0), ("top_k", -1), ("repetition_penalty", 0)])
def test_sampling_refuses_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"Sampling: {field} must be"):
        Sampling(**{field: value})
