"""The latency command: measure the latency of a model per clip, compiled and eager, and write latency.json.

The model is compiled if a compiler is found; the next run loads the compiled code. The LoRA is merged into the LLM
first. Each latency is reported with the fraction of tokens that equal the eager ones.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import EVALUATION_KEYS
from audiolm_lite.config.start import start_run
from audiolm_lite.data.batching import collate
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.deploy.backends import available_backends, make_backend
from audiolm_lite.deploy.latency import Prompt, measure
from audiolm_lite.evaluation.setup import build_test_sets, load_bundle
from audiolm_lite.modeling.lora import merge_lora
from audiolm_lite.storage.atomic import write_json


def choose_backend(name: str, llm: nn.Module) -> str:
    """Return the requested backend; for "best" the first of aoti, inductor, eager that works here for this LLM.

    Prints why a faster one cannot be used. A quantised LLM only runs in the eager backend.

    Examples
    --------
    >>> llm = nn.Linear(2, 2)
    >>> choose_backend("inductor", llm)
    'inductor'
    >>> llm.is_quantized = True
    >>> choose_backend("best", llm)
    no aoti and no inductor: the LLM is quantised
    'eager'
    """
    if name != "best":
        return name
    if getattr(llm, "is_quantized", False):
        print("no aoti and no inductor: the LLM is quantised")
        return "eager"
    reasons = available_backends(next(llm.parameters()).device.type)
    for candidate in ("aoti", "inductor"):
        if reasons[candidate] is None:
            return candidate
        print(f"no {candidate}: {reasons[candidate]}")
    return "eager"


def make_prompt(bundle: ModelBundle, dataset: AudioTextDataset, index: int) -> Prompt:
    """Return a function to be timed: from an item's waveform in memory to the LLM's input."""
    batch = collate([dataset[index]]).to(next(bundle.model.parameters()).device)
    return lambda: (bundle.model.embed(batch), batch.attention_mask)


def main(argv: list[str]) -> dict[str, Any]:
    """Measure the latency of a model.

    Parameters
    ----------
    argv : list of str
        YAML file and overrides, see `config.keys.EVALUATION_KEYS`.

    Returns
    -------
    dict
        Content of latency.json.

    Raises
    ------
    UserError
        The configuration, the model, the test set or the backend cannot be used.
    """
    hparams, run_opts, resolved = load_experiment(argv, EVALUATION_KEYS)
    start_run(hparams, resolved)
    output = Path(hparams["output_folder"])
    bundle = load_bundle(hparams, run_opts)
    # Waveforms instead of stored features, so that the encoder is timed too.
    dataset = build_test_sets({**hparams, "feature_folder": None, "controls": ["normal"]}, bundle)["normal"]
    clips = range(0, len(dataset), max(1, len(dataset) // hparams["latency_clips"]))
    tokens = hparams["latency_tokens"]
    bundle.model.llm = llm = merge_lora(bundle.model.llm)
    name = choose_backend(hparams["backend"], llm)
    print(f"backend: {name}" + (" (compiles in the first run)" if name != "eager" else ""))
    backend = make_backend(name, llm, 1, int(dataset.lengths.max()) + tokens, output / "compiled")
    with torch.inference_mode():
        prompts = [make_prompt(bundle, dataset, i) for i in clips]
        result = measure(
            backend, prompts, new_tokens=tokens, eos_ids=bundle.eos_ids, runs=hparams["latency_runs"], warmups=10
        )
    write_json(output / "latency.json", result)
    for key in ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb"):
        print(f"{key:>16}  {result[key]:.2f}")
    return result
