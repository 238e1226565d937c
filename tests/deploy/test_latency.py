"""The latency protocol: what each measured value includes."""

import dataclasses
import json
import time

import pytest
import torch

from audiolm_lite.deploy import make_backend, measure
from audiolm_lite.deploy.latency import _p90, _token_match
from audiolm_lite.storage.process_memory import KIND
from tests.tiny import tiny_llm

SIZES = {"intermediate_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 1, "max_position_embeddings": 64}
LLM = tiny_llm(31, seed=0, **SIZES).eval()
EAGER = make_backend("eager", LLM, 1, 32)
OPTIONS = {"new_tokens": 5, "warmups": 1, "runs": 3}


def prompt():
    return torch.ones(1, 6, 16), torch.ones(1, 6, dtype=torch.bool)


def test_ttft_includes_the_prompt_function_and_tpot_each_step():
    def slow_prompt():
        time.sleep(0.05)
        return prompt()

    def slow_step(*arguments):
        time.sleep(0.02)
        return EAGER.decode_step(*arguments)

    backend = dataclasses.replace(EAGER, name="slow", decode_step=slow_step)
    result = measure(backend, [slow_prompt], **OPTIONS)
    assert 50 < result["ttft_ms"] <= result["ttft_ms_p90"]
    assert 20 < result["tpot_ms"] <= result["tpot_ms_p90"]
    assert result["ttft_ms_eager"] > 50 and result["tpot_ms_eager"] < result["tpot_ms"]
    assert result["token_match"] == 1 and result["prompt_tokens"] == 6 and result["backend"] == "slow"


def test_wrong_backend_lowers_token_match():
    backend = dataclasses.replace(EAGER, name="wrong", decode_step=lambda *a: -EAGER.decode_step(*a))
    assert measure(backend, [prompt], **OPTIONS)["token_match"] <= 0.4  # the first token comes from prefill


def test_answers_are_compared_up_to_their_end_token():
    first = EAGER.generate(*prompt(), max_new_tokens=2, eos_ids=[])[0]
    backend = dataclasses.replace(EAGER, name="wrong", decode_step=lambda *a: -EAGER.decode_step(*a))
    assert measure(backend, [prompt], eos_ids=first[0], **OPTIONS)["token_match"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures GPU memory if a GPU is in use")
def test_peak_memory_includes_the_prompt_function():
    def large_prompt():
        torch.ones(50_000_000)  # 200 MB, freed immediately
        return prompt()

    result = measure(EAGER, [large_prompt], **OPTIONS)
    assert result["peak_memory_mb"] > result["memory_before_mb"] + 100
    assert result["peak_memory_kind"] == KIND and result["mapped_files_mb"] >= 0


def test_result_is_flat_json():
    result = measure(EAGER, [prompt], **OPTIONS)
    assert json.loads(json.dumps(result)) == result
    assert all(isinstance(value, (str, int, float)) for value in result.values())


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="at least two new tokens"):
        measure(EAGER, [prompt], new_tokens=1)
    with pytest.raises(ValueError, match="at least one run"):
        measure(EAGER, [prompt], runs=0)


@pytest.mark.parametrize("count, expected", [(1, 1), (9, 9), (10, 9), (20, 18), (21, 19)])
def test_p90(count, expected):
    assert _p90(list(range(count, 0, -1))) == expected


def test_token_match_of_a_manually_counted_case():
    assert _token_match([[1, 2, 3], []], [[1, 5, 3, 4], []]) == 0.5
    assert _token_match([[]], [[]]) == 1
