"""Speed of decoding against transformers.generate: greedy, batch 1.

    python benchmarks/decode.py                   # small (5M parameters) and medium (135M), on a CPU with one thread
    python benchmarks/decode.py --model FOLDER    # a real LLM of transformers, in place of medium
    python benchmarks/decode.py --device cuda     # the geometry of Llama-3.2-1B in bfloat16

On the CPU all contenders run in turn in this process, several rounds, and times are process CPU times, so other work on
the machine matters less. The random weights are bfloat16 numbers, as published ones are. For each geometry the last
line of standard output, one JSON object, has, by backend:

- `tpot_ms`, `prefill_ms`: medians of the time per output token, without the prompt, and of the prompt
- `tpot_ratio_vs_generate`, `prefill_ratio`: transformers' better dtype over this backend
- `mbu`: bytes of the weights / time per token / `bandwidth_gb_s`, at which this process reads a large array
- `token_match`: tokens equal to those of eager float32; `forced_top1`: positions of prompt and answer after which the
  most likely token is that of eager float32, all given the same tokens
- `batch_cost`: time of a step for 4, 8 and 16 rows over that for one
- `two_threads_speedup`: wall time per token with one thread over that with two; needs two idle cores

The prompt is this text, or random embeddings for random weights. `memory_growth_mb` is the growth of the process over
1,000 requests to the small model. `missing` lists what cannot run here, with the reason. `--peers` adds CTranslate2
(float32 and int8) if it is installed; this needs `--model`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from audiolm_lite.decoding.backend import eager_backend
from audiolm_lite.decoding.state import DecodeState
from audiolm_lite.deploy import available_backends, make_backend
from audiolm_lite.deploy.cpu.backend import BACKENDS
from audiolm_lite.deploy.cpu.model import CpuModel

SMALL = LlamaConfig(
    hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=1000, max_position_embeddings=2048, initializer_range=0.1,
)  # fmt: skip
MEDIUM = LlamaConfig(  # SmolLM2-135M
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.05,
)  # fmt: skip
LLAMA_1B = LlamaConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    head_dim=64, vocab_size=128256, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
FORMATS = ("cpu-f32", "cpu-bf16", "cpu-int8", "cpu-int4")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Process CPU time of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def bandwidth(array: torch.Tensor) -> float:
    """Bytes per second of CPU time at which one thread reads an array that no cache holds."""
    return array.numel() * array.element_size() / min(cpu_seconds(array.sum) for _ in range(3))


def generator(llm, embeds: torch.Tensor) -> Callable[[int], list[int]]:
    """transformers.generate as a function of the number of new tokens."""
    mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)

    def run(new_tokens: int) -> list[int]:
        return llm.generate(
            inputs_embeds=embeds, attention_mask=mask, do_sample=False, min_new_tokens=new_tokens,
            max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
        )[0].tolist()  # fmt: skip

    return run


def runner(backend, embeds: torch.Tensor) -> Callable[[int], list[int]]:
    """A backend as a function of the number of new tokens."""
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    return lambda new_tokens: backend.generate(embeds, mask, max_new_tokens=new_tokens, eos_ids=[])[0]


def ctranslate2_runners(folder: str, prompt: torch.Tensor) -> dict[str, Callable[[int], list[int]]]:
    """CTranslate2's generators of a model folder, from as many prompt tokens (it takes no embeddings)."""
    import ctranslate2

    runs = {}
    for kind in ("float32", "int8"):
        converted = f"{tempfile.mkdtemp()}/{kind}"
        ctranslate2.converters.TransformersConverter(folder).convert(converted, quantization=kind)
        model = ctranslate2.Generator(converted, device="cpu", compute_type=kind, intra_threads=1)

        def run(new_tokens: int, model=model) -> list[int]:
            prompts = [["<|im_start|>"] * prompt.shape[1]]
            return model.generate_batch(
                prompts, max_length=new_tokens, min_length=new_tokens, sampling_topk=1, include_prompt_in_result=False
            )[0].sequences_ids[0]  # fmt: skip

        runs[f"ctranslate2 {kind}"] = run
    return runs


@torch.no_grad()
def forced_top1(model: CpuModel, llm, embeds: torch.Tensor, answer: list[int]) -> float:
    """Fraction of positions of prompt and answer after which the model and eager float32 predict the same token."""
    inputs = torch.cat([embeds[0], llm.get_input_embeddings()(torch.tensor(answer))])
    expected = llm(inputs_embeds=inputs[None]).logits[0].argmax(-1)
    everything = range(len(inputs))
    tokens = model.step(DecodeState.allocate(llm, 1, len(inputs)), inputs, [0] * len(inputs), everything, everything)
    return float((tokens.argmax(-1) == expected).float().mean())


@torch.no_grad()
def prompt_of(llm, options) -> torch.Tensor:
    """[1, S, H] embeddings of the first tokens of this file's text, or random ones for random weights."""
    embeddings = llm.get_input_embeddings()
    if options.model and llm.config.vocab_size != SMALL.vocab_size:
        tokens = AutoTokenizer.from_pretrained(options.model)(__doc__)["input_ids"][: options.prompt_tokens]
        return embeddings(torch.tensor([tokens]))
    torch.manual_seed(1)
    return torch.randn(1, options.prompt_tokens, embeddings.embedding_dim) * embeddings.weight.std()


def step_costs(model: CpuModel, llm, position: int, clock: Callable[[], float]) -> dict[int, float]:
    """Median seconds of a decoding step of 1, 4, 8 and 16 rows at a position of the cache."""
    state, costs = DecodeState.allocate(llm, 16, position + 1), {}
    for rows in (1, 4, 8, 16):
        embeds, times = torch.ones(rows, model.hidden), []
        for _ in range(9):
            started = clock()
            model.step(state, embeds, range(rows), [position] * rows, range(rows))
            times.append(clock() - started)
        costs[rows] = median(times)
    return costs


def benchmark_cpu(geometry: str, llm, options) -> dict:
    """All contenders in turn on one LLM in float32."""
    embeds, new = prompt_of(llm, options), options.new_tokens
    halved = AutoModelForCausalLM.from_config(llm.config).to(torch.bfloat16).eval()
    halved.load_state_dict(llm.state_dict())
    runs = {"transformers f32": generator(llm, embeds), "transformers bf16": generator(halved, embeds.bfloat16())}
    runs["eager"] = runner(eager_backend(llm), embeds)
    missing = {name: reason for name, reason in available_backends().items() if reason}
    names = [name for name in FORMATS if name not in missing]
    models = {name: CpuModel(llm, BACKENDS[name], threads=1) for name in names}
    for name in names:
        runs[name] = runner(make_backend(name, llm, 1, 1), embeds)
    if options.peers:
        if options.model and find_spec("ctranslate2"):
            runs.update(ctranslate2_runners(options.model, embeds))
        else:
            missing["ctranslate2"] = "pip install ctranslate2, and give --model"
    array = torch.ones(64_000_000)  # 256 MB
    answers = {name: run(new) for name, run in runs.items()}  # also the warm-up
    speeds = [bandwidth(array)]
    prefill, tpot = {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            first = cpu_seconds(lambda: run(1))  # noqa: B023
            prefill[name].append(first)
            tpot[name].append((cpu_seconds(lambda: run(new)) - first) / (new - 1))  # noqa: B023
            print(f"{geometry}: {name} {1 / tpot[name][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
        speeds.append(bandwidth(array))
    tpot_s, prefill_s = ({name: median(times) for name, times in each.items()} for each in (tpot, prefill))
    result = {
        "geometry": geometry,
        "parameters": sum(parameter.numel() for parameter in llm.parameters()),
        "bandwidth_gb_s": max(speeds) / 1e9,
        "tpot_ms": {name: 1e3 * seconds for name, seconds in tpot_s.items()},
        "prefill_ms": {name: 1e3 * seconds for name, seconds in prefill_s.items()},
        "tpot_ratio_vs_generate": {
            name: min(tpot_s["transformers f32"], tpot_s["transformers bf16"]) / seconds
            for name, seconds in tpot_s.items()
        },
        "prefill_ratio": {
            name: min(prefill_s["transformers f32"], prefill_s["transformers bf16"]) / seconds
            for name, seconds in prefill_s.items()
        },
        "weight_mb": {name: models[name].weight_bytes / 1e6 for name in names},
        "mbu": {name: models[name].weight_bytes / tpot_s[name] / max(speeds) for name in names},
        "token_match": {
            name: sum(a == b for a, b in zip(answer, answers["eager"])) / new
            for name, answer in answers.items()
            if not name.startswith("ctranslate2")  # from another prompt
        },
        "forced_top1": {name: forced_top1(models[name], llm, embeds, answers["eager"]) for name in names},
        "batch_cost": {},
        "two_threads_speedup": {},
        "missing": missing,
    }
    if "ctranslate2 int8" in tpot_s:
        result["vs_ctranslate2_int8"] = tpot_s["ctranslate2 int8"] / tpot_s["cpu-int8"]
    for name in names:
        costs = step_costs(models[name], llm, options.prompt_tokens, time.process_time)
        result["batch_cost"][name] = {rows: seconds / costs[1] for rows, seconds in costs.items() if rows > 1}
        two = step_costs(CpuModel(llm, BACKENDS[name], threads=2), llm, options.prompt_tokens, time.perf_counter)
        one = step_costs(models[name], llm, options.prompt_tokens, time.perf_counter)
        result["two_threads_speedup"][name] = one[1] / two[1]
    return result


def memory_growth(llm, requests: int = 1000) -> float:
    """Growth of the process in MB over so many requests of different lengths, after a tenth as many."""
    backend, process = make_backend("cpu", llm, 1, 1), psutil.Process()
    hidden, before = llm.get_input_embeddings().embedding_dim, 0
    for request in range(requests + requests // 10):
        if request == requests // 10:
            before = process.memory_info().rss
        length = 1 + 7 * request % 60
        backend.generate(torch.ones(1, length, hidden), torch.ones(1, length), max_new_tokens=4, eos_ids=[])
    return (process.memory_info().rss - before) / 1e6


def on_cpu(options) -> dict:
    """Both geometries, and the growth of memory."""
    results = {}
    for geometry, config in (("small", SMALL), ("medium", MEDIUM)):
        torch.manual_seed(0)
        if geometry == "medium" and options.model:
            llm = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        else:
            llm = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).float()
        if geometry in options.only:
            results[geometry] = benchmark_cpu(geometry, llm.eval(), options)
        if geometry == "small" and available_backends()["cpu"] is None:
            results["memory_growth_mb"] = memory_growth(llm.eval())
    return results


def on_cuda(options) -> dict:
    """Speed of each backend on a GPU in tokens per second of wall time, the prompt included."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        llm = AutoModelForCausalLM.from_config(LLAMA_1B).to(torch.bfloat16).eval()
    embeds = torch.randn(1, options.prompt_tokens, LLAMA_1B.hidden_size).to("cuda", torch.bfloat16)
    new = options.new_tokens
    speeds, matches, compile_seconds = {}, {}, {}
    missing = {name: reason for name, reason in available_backends("cuda").items() if reason}

    def tokens_per_second(run: Callable[[int], list[int]]) -> tuple[float, list[int]]:
        times = []
        for _ in range(options.rounds + 2):  # two warm-ups
            started = time.perf_counter()
            answer = run(new)  # ends with tokens on the host, so the device is synchronised
            times.append(time.perf_counter() - started)
        return new / median(times[2:]), answer

    speeds["transformers"], _ = tokens_per_second(generator(llm, embeds))
    with tempfile.TemporaryDirectory() as cache_folder:
        for name in ("eager", "inductor", "aoti"):
            if name in missing:
                continue
            backend = make_backend(name, llm, 1, options.prompt_tokens + new, cache_folder)
            speeds[name], answer = tokens_per_second(runner(backend, embeds))
            if name == "eager":
                eager_answer = answer
            compile_seconds[name] = backend.compile_seconds
            matches[name] = sum(a == b for a, b in zip(answer, eager_answer, strict=True)) / new
            print(f"llama-3.2-1b: {name} {speeds[name]:.1f} tokens/s", file=sys.stderr)
    return {
        "geometry": "llama-3.2-1b",
        "device_name": torch.cuda.get_device_name(),
        "dtype": "bfloat16",
        "tokens_per_second": speeds,
        "token_match": matches,
        "compile_seconds": compile_seconds,
        "missing": missing,
    }


def main() -> None:
    """Measure on one device and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt_tokens", type=int, default=150)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a real LLM, in place of the medium geometry")
    parser.add_argument("--only", nargs="+", choices=("small", "medium"), default=["small", "medium"])
    parser.add_argument("--peers", action="store_true", help="also measure CTranslate2, if it is installed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = on_cuda(options) if options.device == "cuda" else on_cpu(options)
    print(json.dumps({**vars(options), "torch": torch.__version__, "threads": torch.get_num_threads(), **result}))


if __name__ == "__main__":
    main()
