"""The latency command: time the model clip by clip, compiled and eager, and write latency.json.

Compiles where a compiler is present and keeps the result for the next run. The LoRA is merged into the LLM first.
The share of tokens that equal the eager ones is reported next to each time.
"""

from pathlib import Path

import torch

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import EVALUATION_KEYS
from audiolm_lite.config.start import start_run
from audiolm_lite.data.batching import collate
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.deploy.backends import available_backends, make_backend
from audiolm_lite.deploy.latency import Prompt, measure, write_latency
from audiolm_lite.evaluation.setup import control_sets, load_bundle
from audiolm_lite.modeling.lora import merge_lora


def choose_backend(name: str, device: str) -> str:
    """The backend asked for; for "best" the first of aoti, inductor, eager that works here, saying why not."""
    if name != "best":
        return name
    reasons = available_backends(device)
    for candidate in ("aoti", "inductor", "eager"):
        if reasons[candidate] is None:
            return candidate
        print(f"no {candidate}: {reasons[candidate]}")
    raise AssertionError("eager is always available")


def prompt_of(bundle: ModelBundle, dataset, index: int) -> Prompt:
    """Everything from the waveform in memory to the LLM's input, as a function to be timed."""
    batch = collate([dataset[index]]).to(next(bundle.model.parameters()).device)
    return lambda: (bundle.model.embed(batch), batch.attention_mask)


def main(argv: list[str]) -> dict:
    """Measure and return what latency.json holds."""
    hparams, run_opts, resolved = load_experiment(argv, EVALUATION_KEYS)
    start_run(hparams, resolved)
    bundle = load_bundle(hparams, run_opts)
    # Waveforms, so that the encoder is timed too.
    dataset = control_sets({**hparams, "feature_folder": None, "controls": ["normal"]}, bundle)["normal"]
    clips = range(0, len(dataset), max(1, len(dataset) // hparams["latency_clips"]))
    tokens = hparams["latency_tokens"]
    bundle.model.llm = llm = merge_lora(bundle.model.llm)
    name = choose_backend(hparams["backend"], next(llm.parameters()).device.type)
    print(f"backend: {name}" + (" (compiling, once)" if name != "eager" else ""))
    capacity = int(dataset.lengths.max()) + tokens
    backend = make_backend(name, llm, 1, capacity, Path(hparams["output_folder"]) / "compiled")
    with torch.inference_mode():
        prompts = [prompt_of(bundle, dataset, i) for i in clips]
        result = measure(
            backend, prompts, new_tokens=tokens, eos_ids=bundle.eos_ids, runs=hparams["latency_runs"], warmups=10
        )
    write_latency(Path(hparams["output_folder"]) / "latency.json", result)
    for key in ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb"):
        print(f"{key:>16}  {result[key]:.2f}")
    return result
