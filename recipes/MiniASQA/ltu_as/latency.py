"""Time the model clip by clip, compiled and eager: python latency.py hparams/evaluate.yaml --backend best

Compiles where a compiler is present (kept for the next time), checks that the answers stay the same, and writes
latency.json. The LoRA is merged into the LLM first.
"""

import sys
from pathlib import Path

import torch

from audiolm_lite.bundle import ModelBundle
from audiolm_lite.data.batching import collate
from audiolm_lite.deploy.backends import available_backends, make_backend
from audiolm_lite.deploy.latency import Prompt, measure, write_latency
from audiolm_lite.evaluation.setup import control_sets, load_bundle
from audiolm_lite.training.experiment import load_experiment
from audiolm_lite.training.keys import EVALUATION_KEYS


def choose_backend(name: str, device: str) -> str:
    """The back end asked for; for "best" the first of aoti, inductor, eager that works here, saying why not."""
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
    hparams, run_opts = load_experiment(argv, EVALUATION_KEYS)
    bundle = load_bundle(hparams, run_opts)
    # Waveforms, so that the encoder is timed too.
    dataset = control_sets({**hparams, "feature_folder": None, "controls": ["normal"]}, bundle)["normal"]
    clips = range(0, len(dataset), max(1, len(dataset) // hparams["latency_clips"]))
    tokens = hparams["latency_tokens"]
    llm = bundle.model.llm
    if hasattr(llm, "merge_and_unload"):
        bundle.model.llm = llm = llm.merge_and_unload()
    name = choose_backend(hparams["backend"], next(llm.parameters()).device.type)
    print(f"back end: {name}" + (" (compiling, once)" if name != "eager" else ""))
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


if __name__ == "__main__":
    main(sys.argv[1:])
