"""The latency command: measure the latency of a model per clip, compiled and eager, and write latency.json.

By default the fastest backend is measured; compiling takes minutes, the next run loads the compiled code. Each latency
is reported with the fraction of tokens that equal the eager ones.
"""

from pathlib import Path
from typing import Any

import torch

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import EVALUATION_KEYS
from audiolm_lite.config.start import start_run
from audiolm_lite.data.batching import collate
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.deploy.latency import Prompt, measure
from audiolm_lite.evaluation.setup import build_test_sets, load_bundle
from audiolm_lite.storage.atomic import write_json


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
    llm = bundle.model.llm
    backend = make_backend(hparams["backend"], llm, 1, int(dataset.lengths.max()) + tokens)
    print(f"backend: {backend.name}")
    with torch.inference_mode():
        prompts = [make_prompt(bundle, dataset, i) for i in clips]
        result = measure(
            backend, prompts, new_tokens=tokens, eos_ids=bundle.eos_ids, runs=hparams["latency_runs"], warmups=10
        )
    write_json(output / "latency.json", result)
    for key in ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb"):
        print(f"{key:>16}  {result[key]:.2f}")
    return result
