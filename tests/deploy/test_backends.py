"""Backends: compiled functions give the answers of the eager ones, from any cache folder, for any weights."""

import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._inductor import exc

from audiolm_lite.decoding import DecodeState, Sampling, decode_step, generate
from audiolm_lite.decoding.backend import eager_backend
from audiolm_lite.deploy import available_backends, make_backend, run
from audiolm_lite.deploy.backends import BackendError, _export, _fastest, _fingerprint
from tests.tiny import tiny_llm

NAMES = ("eager", "inductor", "aoti")
ROWS, CAPACITY, HIDDEN = 3, 20, 32
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def make_llm(seed=0, device="cpu"):
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return tiny_llm(61, seed, **sizes).eval().to(device)


def prompts(rows, length, device="cpu"):
    """[rows, length, H] padded on the left for odd rows, on the right for even ones."""
    embeds = torch.randn(rows, length, HIDDEN, generator=torch.Generator().manual_seed(length))
    mask = torch.ones(rows, length, dtype=torch.bool)
    for row in range(rows):
        padded = slice(0, row) if row % 2 else slice(length - row, length)
        mask[row, padded] = length <= row  # padding, but at least one token remains
    return embeds.to(device), mask.to(device)


@pytest.fixture(scope="module")
def llms():
    return {device: make_llm(device=device) for device in DEVICES}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", params=[(name, device) for device in DEVICES for name in ("inductor", "aoti")])
def backend(request, llms, cache_folder):
    name, device = request.param
    if reason := available_backends(device)[name]:
        pytest.skip(f"{name} on {device}: {reason}")
    return make_backend(name, llms[device], ROWS, CAPACITY, cache_folder)


@pytest.mark.parametrize(
    "rows, length, new_tokens", [(3, 9, 11), (3, 3, 8), (2, 5, 8), (1, 1, 8), (3, CAPACITY, 1), (1, 2, 19)]
)
def test_tokens_equal_eager(backend, rows, length, new_tokens):
    """Prompt lengths from 1 up to the capacity, and smaller batches."""
    batch = prompts(rows, length, backend.state.position.device.type)
    options = {"max_new_tokens": new_tokens, "eos_ids": 7}
    assert backend.generate(*batch, **options) == generate(backend.llm, *batch, **options)
    options["sampling"] = Sampling(temperature=2.0, top_p=0.9, repetition_penalty=1.2)
    assert backend.generate(*batch, **options) == generate(backend.llm, *batch, **options)


def test_weights_are_those_of_the_live_model(backend):
    """Weights that change after compilation have an effect: none were compiled into the code."""
    batch = prompts(3, 6, backend.state.position.device.type)
    options = {"max_new_tokens": 6, "eos_ids": 7}
    before = backend.generate(*batch, **options)
    mlp = backend.llm.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        mlp.neg_()
        changed, expected = backend.generate(*batch, **options), generate(backend.llm, *batch, **options)
        mlp.neg_()
    assert changed == expected != before


def test_input_that_it_was_not_compiled_for_is_refused(backend):
    embeds, mask = prompts(3, 4, backend.state.position.device.type)
    with pytest.raises(ValueError, match="another model"):
        backend.prefill(make_llm(1), backend.state, embeds, mask)
    with pytest.raises(ValueError, match="its own cache"):
        backend.prefill(backend.llm, DecodeState.allocate(backend.llm, ROWS, CAPACITY), embeds, mask)
    with pytest.raises(
        ValueError, match=r"inputs_embeds is .* torch.float64 .* compiled for \[3, 4, 32\] torch.float32"
    ):
        backend.prefill(backend.llm, backend.state, embeds.double(), mask)
    with pytest.raises(ValueError, match="inputs_embeds is .* compiled for"):
        backend.prefill(backend.llm, backend.state, embeds.repeat(1, 6, 1), mask.repeat(1, 6))
    with pytest.raises(ValueError, match=r"token is \[2\] torch.int64"):
        backend.decode_step(backend.llm, backend.state, torch.tensor([1, 2], device=embeds.device))
    with pytest.raises(ValueError, match="do not fit a cache of 3 rows of 20"):
        backend.generate(embeds, mask, max_new_tokens=CAPACITY, eos_ids=7)


def test_package_runs_other_weights_without_compiling(backend, cache_folder, monkeypatch):
    if backend.name != "aoti":
        pytest.skip("inductor has no packages")
    device = backend.state.position.device.type
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)
    other = make_llm(seed=1, device=device)
    again = make_backend("aoti", other, ROWS, CAPACITY, cache_folder)
    batch, options = prompts(3, 7, device), {"max_new_tokens": 8, "eos_ids": 7}
    assert again.generate(*batch, **options) == generate(other, *batch, **options)
    assert again.generate(*batch, **options) != backend.generate(*batch, **options)


def test_interrupted_compilation_leaves_nothing(tmp_path, monkeypatch):
    if reason := available_backends()["aoti"]:
        pytest.skip(reason)

    def interrupted(graph, package_path, inductor_configs):
        open(package_path, "w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_backend("aoti", make_llm(), 1, 8, tmp_path)
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_exported_graphs_equal_eager():
    """Both functions can be exported, with PEFT too. This test needs no compiler."""
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    llm = get_peft_model(make_llm(), lora).eval()
    state = DecodeState.allocate(llm, ROWS, CAPACITY)
    graphs = {name: graph.module() for name, graph in _export(llm, state).items()}

    def run(name):
        return lambda llm, state, *tensors: graphs[name](state.keys, state.values, state.position, *tensors)

    for length in (2, 7, CAPACITY - 3):
        batch, options = prompts(ROWS, length), {"max_new_tokens": 4, "eos_ids": []}
        answers = generate(llm, *batch, prefill=run("prefill"), decode_step=run("decode_step"), state=state, **options)
        assert answers == generate(llm, *batch, **options)


def test_fingerprint_contains_what_the_code_depends_on():
    llm = make_llm()
    state = DecodeState.allocate(llm, 2, 16)
    fingerprint = _fingerprint(llm, state)
    assert fingerprint == _fingerprint(make_llm(seed=1), state)
    lora = get_peft_model(make_llm(), LoraConfig(r=2, lora_alpha=4))
    stronger = get_peft_model(make_llm(), LoraConfig(r=2, lora_alpha=8))
    others = [
        _fingerprint(llm, DecodeState.allocate(llm, 2, 17)),
        _fingerprint(make_llm().to(torch.bfloat16), state),
        _fingerprint(lora, state),
        _fingerprint(stronger, state),
    ]
    assert all(a != b for i, a in enumerate([fingerprint, *others]) for b in others[i:])


def test_missing_compiler_is_named(monkeypatch):
    def no_compiler():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    reasons = available_backends()
    assert reasons["eager"] is None and "install g++" in reasons["inductor"] and "install g++" in reasons["aoti"]
    with pytest.raises(BackendError, match="aoti is not available: no C.. compiler; install g"):
        make_backend("aoti", make_llm(), 1, 8)


def test_compiled_code_is_stored_in_the_cache_folder(tmp_path, monkeypatch):
    if reason := available_backends()["aoti"]:
        pytest.skip(reason)

    def interrupted(graph, package_path, inductor_configs):
        raise KeyboardInterrupt

    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_backend("aoti", make_llm(), 1, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]


def test_the_latency_command_stores_compiled_code_in_the_cache_folder_only(tmp_path, monkeypatch):
    if reason := available_backends()["aoti"]:
        pytest.skip(reason)
    output, written = tmp_path / "results", []

    def interrupted(graph, package_path, inductor_configs):
        written.append(Path(package_path))
        raise KeyboardInterrupt

    class Clips:
        lengths = torch.tensor([4])

        def __len__(self):
            return 1

    hparams = {"output_folder": str(output), "backend": "aoti", "latency_clips": 1, "latency_tokens": 2}
    bundle = SimpleNamespace(model=SimpleNamespace(llm=make_llm()), eos_ids=())
    monkeypatch.setattr(run, "load_experiment", lambda argv, keys: (hparams, {}, ""))
    monkeypatch.setattr(run, "start_run", lambda hparams, resolved: output.mkdir())
    monkeypatch.setattr(run, "load_bundle", lambda hparams, run_opts: bundle)
    monkeypatch.setattr(run, "build_test_sets", lambda hparams, bundle: {"normal": Clips()})
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main([])
    assert [path.is_relative_to(tmp_path / "cache" / "compiled") for path in written] == [True]
    assert list(output.iterdir()) == []


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown backend 'fast'.*Known: eager, inductor, aoti"):
        make_backend("fast", make_llm(), 1, 8)
    with pytest.raises(ValueError, match="training mode"):
        make_backend("inductor" if available_backends()["inductor"] is None else "eager", make_llm().train(), 1, 8)


@pytest.mark.parametrize("name", ["inductor", "aoti"])
def test_a_quantised_llm_is_refused_by_compilers_and_runs_eagerly(name, caplog):
    """bitsandbytes' layers cannot be traced; the message comes before the compiler's own error."""
    llm = make_llm()
    llm.is_quantized = True
    if available_backends()[name] is None:
        with pytest.raises(BackendError, match=f"{name} cannot compile a quantised LLM; use eager"):
            make_backend(name, llm, 1, 8)
    assert make_backend("eager", llm, 1, 8).name == "eager"
    with caplog.at_level("INFO"):
        assert make_backend("best", llm, 1, 8).name == "eager"
    assert f"{name} cannot compile a quantised LLM" in caplog.text or available_backends()[name]


@pytest.mark.parametrize(("delays", "fastest"), [((0.0, 0.01), "eager"), ((0.01, 0.0), "aoti")])
def test_best_is_the_fastest_of_those_that_work(delays, fastest, monkeypatch, caplog):
    """A compiled backend can be slower than plain PyTorch."""
    llm = make_llm()

    def slowed(name, *arguments):
        if name == "inductor":
            raise AssertionError("on a CPU it is the same code as aoti")
        if name == "cpu":
            raise BackendError("it cannot run this LLM")

        def step(*arguments):
            time.sleep(delays[name == "aoti"])
            return decode_step(*arguments)

        return replace(eager_backend(llm), name=name, decode_step=step)

    monkeypatch.setattr("audiolm_lite.deploy.backends.make_backend", slowed)
    with caplog.at_level("INFO"):
        assert _fastest(llm, 1, 40, None).name == fastest
    assert re.search(rf"\d ms, .*\d ms per token; takes {fastest}", caplog.text)
