"""Speed of decoding: tokens per second of transformers.generate and of every backend, greedy, batch 1.

    python benchmarks/decode.py

The models have random weights: the geometry of Llama-3.2-1B (bfloat16) on a GPU, a small Llama (hidden 256, 4 layers,
vocabulary 1000, float32) on the CPU. The last line of standard output is one JSON object; `token_match` is the fraction
of tokens equal to those of the eager backend.
"""

import argparse
import json
import sys
import tempfile
import time
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from audiolm_lite.deploy import available_backends, make_backend

SMALL = LlamaConfig(
    hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=1000, max_position_embeddings=2048, initializer_range=0.1,
)  # fmt: skip
LLAMA_1B = LlamaConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    head_dim=64, vocab_size=128256, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip


def seconds(work, runs: int) -> tuple[float, list[int]]:
    """Median time of `work` in seconds and its last answer; the first two calls are warm-ups."""
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        answer = work()  # ends with tokens on the host, so the device is synchronised
        times.append(time.perf_counter() - started)
    return median(times[2:]), answer


def benchmark(geometry: str, config: LlamaConfig, device: str, dtype: torch.dtype, options) -> dict:
    """Speed of each backend with one geometry; those that cannot run here are listed with the reason."""
    torch.manual_seed(0)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    embeds = torch.randn(1, options.prompt_tokens, config.hidden_size).to(device, dtype)
    mask = torch.ones(1, options.prompt_tokens, dtype=torch.bool, device=device)
    new = options.new_tokens

    def transformers_generate():
        return llm.generate(
            inputs_embeds=embeds, attention_mask=mask.long(), do_sample=False, min_new_tokens=new, max_new_tokens=new,
            eos_token_id=None, pad_token_id=0,
        )[0].tolist()  # fmt: skip

    elapsed, _ = seconds(transformers_generate, options.runs)
    speeds, matches, compile_seconds = {"transformers": new / elapsed}, {}, {}
    missing = {name: reason for name, reason in available_backends(device).items() if reason}
    with tempfile.TemporaryDirectory() as cache_folder:
        for name in sorted(available_backends(device).keys() - missing, key=["eager", "inductor", "aoti"].index):
            backend = make_backend(name, llm, 1, options.prompt_tokens + new, cache_folder)
            elapsed, answer = seconds(
                lambda: backend.generate(embeds, mask, max_new_tokens=new, eos_ids=[])[0],  # noqa: B023
                options.runs,
            )
            if name == "eager":
                eager_answer = answer
            speeds[name], compile_seconds[name] = new / elapsed, backend.compile_seconds
            matches[name] = sum(a == b for a, b in zip(answer, eager_answer, strict=True)) / new
            print(f"{geometry} on {device}: {name} {speeds[name]:.1f} tokens/s", file=sys.stderr)
    return {
        "geometry": geometry,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_per_second": speeds,
        "token_match": matches,
        "compile_seconds": compile_seconds,
        "missing": missing,
    }


def main() -> None:
    """Measure on one device and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device == "cuda":
        results = [benchmark("llama-3.2-1b", LLAMA_1B, "cuda", torch.bfloat16, options)]
    else:
        results = [benchmark("small", SMALL, "cpu", torch.float32, options)]
    print(
        json.dumps(
            {**vars(options), "torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
        )
    )


if __name__ == "__main__":
    main()
