"""The cpu backend: tokens of the eager model, for every kind of LLM that it runs; the others are refused by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from audiolm_lite.decoding.beam import beam_search
from audiolm_lite.decoding.generate import generate
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill
from audiolm_lite.deploy import available_backends, make_backend
from audiolm_lite.deploy.cpu.backend import BACKENDS
from audiolm_lite.deploy.cpu.model import CHUNK, CpuModel
from audiolm_lite.deploy.machine import BackendError, missing_compiler
from audiolm_lite.modeling.lora import merge_lora
from tests.tiny import GROUPED, tiny_llm

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason="no C++ compiler")

VOCABULARY, HIDDEN = 61, 32
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
# Every part that a model type or a configuration can change.
LLMS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 24, "num_key_value_heads": 1},
    "llama3 angles": {"rope_scaling": LLAMA3},
    "yarn angles": {"rope_scaling": YARN},
    "mistral": {"kind": "mistral", "sliding_window": None},
    "qwen2": {"kind": "qwen2"},
    "qwen3": {"kind": "qwen3", "head_dim": 8},
    "smollm3": {"kind": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2, "pad_token_id": 0},
}


def make_llm(seed=0, **entries):
    llm = tiny_llm(VOCABULARY, seed, **{**GROUPED, "max_position_embeddings": 512, **entries}).eval()
    with torch.no_grad():
        for parameter in llm.parameters():  # norms and biases are constants in a new model
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return llm.requires_grad_(False)


def prompts(*lengths):
    """Rows padded on the left and on the right in turn; the padding is NaN, because it must have no effect."""
    longest = max(lengths)
    embeds, mask = torch.full((len(lengths), longest, HIDDEN), float("nan")), torch.zeros(len(lengths), longest)
    generator = torch.Generator().manual_seed(sum(lengths))
    for row, length in enumerate(lengths):
        own = slice(longest - length, None) if row % 2 else slice(0, length)
        embeds[row, own] = torch.randn(length, HIDDEN, generator=generator)
        mask[row, own] = 1
    return embeds, mask


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.mark.parametrize("name", LLMS)
def test_logits_and_tokens_equal_eager(name):
    llm = make_llm(**LLMS[name])
    backend = make_backend("cpu", llm, 1, 1)
    embeds, mask = prompts(9, 4, 1)
    states = [DecodeState.allocate(llm, 3, 16) for _ in range(2)]
    logits = [function(llm, state, embeds, mask) for function, state in zip((backend.prefill, prefill), states)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    for _ in range(3):
        token = logits[1].argmax(-1)
        steps = zip((backend.decode_step, decode_step), states)
        logits = [function(llm, state, token) for function, state in steps]
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert states[0].position.tolist() == states[1].position.tolist() == [12, 7, 4]
    for row, filled in enumerate([12, 7, 4]):
        for cache, expected in zip(states[0].keys + states[0].values, states[1].keys + states[1].values):
            torch.testing.assert_close(cache[row, :, :filled], expected[row, :, :filled], rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 40, "eos_ids": 7}
    assert backend.generate(embeds, mask, **options) == generate(llm, embeds, mask, **options)


def test_beams_equal_eager(llm):
    embeds, mask = prompts(5, 3)
    options = {"beams": 3, "max_new_tokens": 8, "eos_ids": [7]}
    backend = make_backend("cpu", llm, 1, 1)
    assert backend.beam_search(embeds, mask, **options) == beam_search(llm, embeds, mask, **options)


@pytest.mark.parametrize("number_format", sorted(set(BACKENDS.values())))
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), split=st.integers(1, 8), threads=st.integers(1, 3))
def test_any_division_into_calls_gives_the_same_bits(number_format, lengths, split, threads):
    """Tokens of several rows in one call, a prompt in chunks, and one token at a time: the same logits and cache."""
    llm = make_llm()
    model = CpuModel(llm, number_format, threads)
    embeds = torch.randn(sum(lengths), HIDDEN, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)])
    positions = torch.tensor([slot for length in lengths for slot in range(length)])
    everything = torch.arange(len(rows))
    together, divided = (DecodeState.allocate(llm, len(lengths), 9) for _ in range(2))
    expected = model.step(together, embeds, rows, positions, everything)
    single = CpuModel(llm, number_format, 1)
    for row in reversed(range(len(lengths))):
        for part in (rows == row).nonzero()[:, 0].split(split):
            logits = single.step(divided, embeds[part], rows[part], positions[part], range(len(part)))
            assert torch.equal(logits, expected[part])
    assert all(torch.equal(a, b) for a, b in zip(together.keys + together.values, divided.keys + divided.values))


def test_long_prompts_are_divided_into_chunks(llm):
    embeds, mask = prompts(CHUNK + 40, 30, CHUNK + 1)
    state, expected = (DecodeState.allocate(llm, 3, 300) for _ in range(2))
    logits = make_backend("cpu", llm, 1, 1).prefill(llm, state, embeds, mask)
    torch.testing.assert_close(logits, prefill(llm, expected, embeds, mask), rtol=1e-3, atol=1e-3)


def test_the_exact_format_is_chosen_for_each_matrix():
    """bfloat16 weights need half the memory; those that are not bfloat16 numbers, as after a LoRA, stay float32."""
    llm = make_llm()
    whole = CpuModel(llm, "exact").weight_bytes
    rounded = make_llm().bfloat16().float()
    assert CpuModel(rounded, "exact").weight_bytes == CpuModel(rounded, "bf16x2").weight_bytes == whole / 2
    rounded.model.layers[0].mlp.down_proj.weight[0, 0] = 0.1
    down = 32 * 64 * 2  # inputs are padded to 64
    assert CpuModel(rounded, "exact").weight_bytes == whole / 2 + down
    embeds, mask = prompts(6, 2)
    options = {"max_new_tokens": 40, "eos_ids": ()}
    assert make_backend("cpu", rounded, 1, 1).generate(embeds, mask, **options) == generate(
        rounded, embeds, mask, **options
    )


def test_a_bfloat16_llm_has_a_bfloat16_cache(llm):
    """Its logits are closer to those of float32 than torch's own are."""
    half = make_llm().bfloat16()
    embeds, mask = prompts(6, 3)
    exact = prefill(half.float(), DecodeState.allocate(half.float(), 2, 8), embeds, mask)
    half = half.bfloat16()
    results = []
    for function in (make_backend("cpu", half, 1, 1).prefill, prefill):
        state = DecodeState.allocate(half, 2, 8)
        results.append(float((function(half, state, embeds.bfloat16(), mask) - exact).abs().max()))
        assert state.keys[0].dtype == torch.bfloat16
    assert results[0] < results[1]


@pytest.mark.parametrize("name, error", [("cpu-int8", 0.1), ("cpu-int4", 1.0)])
def test_quantised_logits_are_near_the_exact_ones(name, error, llm):
    embeds, mask = prompts(30, 20)
    exact = prefill(llm, DecodeState.allocate(llm, 2, 32), embeds, mask)
    logits = make_backend(name, llm, 1, 1).prefill(llm, DecodeState.allocate(llm, 2, 32), embeds, mask)
    assert 0 < float((logits - exact).norm() / exact.norm()) < error


@pytest.mark.parametrize(
    "llm, reason",
    [
        (tiny_llm(VOCABULARY, 0, kind="gemma", head_dim=8), "model type gemma .it runs llama, "),
        (make_llm(hidden_act="gelu"), "hidden_act gelu"),
        (make_llm(kind="mistral", sliding_window=16), "attention with a sliding window"),
        (make_llm(rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "of type dynamic"),
        (make_llm().half(), "weights in float16 on cpu"),
        (get_peft_model(make_llm(), LoraConfig(r=2)), "layer 0: self_attn.q_proj is a Linear, .*merge a LoRA first"),
    ],
    ids=["gemma", "gelu", "window", "dynamic", "float16", "lora"],
)
def test_what_cannot_be_run_is_refused_by_name(llm, reason):
    with pytest.raises(BackendError, match=f"cpu backend cannot run .*{reason}"):
        make_backend("cpu", llm.eval(), 1, 8)


def test_a_merged_lora_runs():
    llm = get_peft_model(make_llm(), LoraConfig(r=2, init_lora_weights=False)).eval()
    embeds, mask = prompts(5)
    options = {"max_new_tokens": 10, "eos_ids": ()}
    merged = merge_lora(llm)
    assert make_backend("cpu", merged, 1, 1).generate(embeds, mask, **options) == generate(
        merged, embeds, mask, **options
    )


def test_wrong_arguments_are_refused_before_they_reach_native_code(llm):
    backend, model = make_backend("cpu", llm, 1, 1), CpuModel(llm)
    state = DecodeState.allocate(llm, 2, 4)
    embeds = torch.zeros(1, HIDDEN)
    with pytest.raises(ValueError, match="another model"):
        backend.decode_step(make_llm(), state, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fit a cache of 2 rows of 4 tokens"):
        backend.prefill(llm, state, *prompts(5, 2))
    with pytest.raises(ValueError, match=r"position 4 is outside of 0\.\.3"):
        model.step(state, embeds, [0], [4], [0])
    with pytest.raises(ValueError, match=r"row -1 is outside of 0\.\.1"):
        model.step(state, embeds, [-1], [0], [0])
    with pytest.raises(ValueError, match=r"token 1 is outside of 0\.\.0"):
        model.step(state, embeds, [0], [0], [1])
    with pytest.raises(ValueError, match=r"give \[M, 32\] embeddings"):
        model.step(state, torch.zeros(1, 8), [0], [0], [0])
    with pytest.raises(ValueError, match="a cache of 2 layers .* this LLM needs"):
        model.step(DecodeState.allocate(make_llm(head_dim=16), 2, 4), embeds, [0], [0], [0])
    state.position.fill_(4)
    with pytest.raises(ValueError, match="position 4 is outside"):
        backend.decode_step(llm, state, torch.zeros(2, dtype=torch.int64))


def test_a_missing_compiler_is_named_and_best_takes_another(monkeypatch, llm):
    from torch._inductor import exc

    def no_compiler():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    assert all("install g++" in available_backends()[name] for name in BACKENDS)
    with pytest.raises(BackendError, match="cpu is not available: no C.. compiler; install g"):
        make_backend("cpu", llm, 1, 8)
    assert make_backend("best", llm, 1, 64).name == "eager"


def test_best_compares_eager_with_cpu_and_compiles_nothing_else(monkeypatch, llm, caplog):
    monkeypatch.setattr("audiolm_lite.deploy.backends._compile_aoti", None)
    with caplog.at_level("INFO"):
        assert make_backend("best", llm, 1, 64).name in ("eager", "cpu")
    assert "eager " in caplog.text and "cpu " in caplog.text and "aoti" not in caplog.text
