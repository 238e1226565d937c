"""Does DeepSpeed compute the same steps as torch? Losses, seconds per step and memory with ZeRO-2 and ZeRO-3.

    python benchmarks/zero.py        or, on several devices: torchrun --standalone --nproc_per_node N benchmarks/zero.py

Each engine trains one stage of random items from the same weights: on the CPU a small Llama, on a GPU one of the
geometry of Llama-3.2-1B in bfloat16 (see train_step.py). Validation and checkpoints are included; the time per step is
the median of the second half. The last line of standard output is one JSON object.
"""

import argparse
import gc
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from train_step import GEOMETRIES, LLAMA, make_items, make_model

from audiolm_lite.config.keys import REQUIRED, TRAINING_KEYS
from audiolm_lite.distributed import processes
from audiolm_lite.training.brain import AudioLMBrain

FILES = Path(__file__).parents[1] / "hparams" / "deepspeed"
ENGINES = {"ddp": None, "zero2": FILES / "zero2.json", "zero3": FILES / "zero3.json"}


class Items(list):
    """Items as a dataset for training."""

    mixture = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item."""
        return [len(item.input_ids) for item in self]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the items are the same in each epoch."""


class Timed(AudioLMBrain):
    """Records the time at which each step ends."""

    def fit_batch(self, window: list) -> dict:
        """Take a step."""
        record = super().fit_batch(window)
        self.__dict__.setdefault("steps", []).append((time.perf_counter(), record["loss"]))
        return record


def run(engine: str, options: argparse.Namespace, device: str, folder: str) -> dict:
    """Train a stage with an engine; returns losses, seconds per step and, on a GPU, the peak of memory."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    kind = torch.device(device).type
    hparams = {name: None if key.default is REQUIRED else key.default for name, key in TRAINING_KEYS.items()} | {
        "manifests": {},
        "stage": 1,
        "output_folder": f"{folder}/{engine}",
        "trainable": ["adapter.*", "llm.*lora_*"],
        "learning_rates": {"adapter.*": 1e-4, "llm.*": 1e-4},
        "batch_tokens": options.batch_tokens,
        "grad_accumulation_factor": 2,
        "precision": "bf16" if kind == "cuda" else "fp32",
    }
    if ENGINES[engine] is not None:
        hparams |= {"parallel": "deepspeed", "deepspeed_config": str(ENGINES[engine])}
    items = Items(make_items(options.items, GEOMETRIES[options.geometry][1], LLAMA["vocab_size"]))
    model = make_model(options.geometry, kind, quantised=False)
    brain = Timed(model, hparams, {"device": device, "noprogressbar": True})
    brain.fit_stage(items, Items(items[:4]))
    times, losses = zip(*brain.steps)
    later = [after - before for before, after in zip(times, times[1:])][len(times) // 2 :]
    result = {"losses": losses, "seconds_per_step": median(later)}
    return result | ({} if kind == "cpu" else {"peak_bytes": torch.cuda.max_memory_allocated()})


def main() -> None:
    """Train with each engine and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, help="default: small on the CPU, llama-3.2-1b on a GPU")
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--batch_tokens", type=int, default=512)
    options = parser.parse_args()
    if importlib.util.find_spec("deepspeed") is None:
        print(json.dumps({"missing": {"zero": "needs DeepSpeed: pip install deepspeed"}}))
        return
    # a GPU if there is one
    device = processes.start_process_group(None) or ("cuda:0" if torch.cuda.is_available() else "cpu")
    options.geometry = options.geometry or ("small" if device == "cpu" else "llama-3.2-1b")
    results = {}
    with tempfile.TemporaryDirectory() as own:
        folder = processes.gather(own)[0]  # the folder of the first process, for all processes
        for engine in ENGINES:
            results[engine] = run(engine, options, device, folder)
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
        processes.gather(None)  # the folder is removed when all processes are done
    if not processes.is_main():
        return
    pairs = {e: zip(results[e].pop("losses"), results["ddp"]["losses"]) for e in ("zero2", "zero3")}
    differences = {engine: max(abs(a - b) / b for a, b in both) for engine, both in pairs.items()}
    losses = results["ddp"].pop("losses")
    machine = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    print(
        json.dumps(
            {
                "largest_relative_loss_difference": differences,
                "engines": results,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "steps": len(losses),
                "geometry": options.geometry,
                "processes": processes.world_size(),
                "device": machine,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
