"""Does training scale? Speed of two processes and of one, cost per sample as the dataset grows, and time to start.

    python benchmarks/scaling.py

Processes: the same windows of batches, and so the same global batch, with one process and with two of torchrun on the
CPU, one thread each. The machine needs as many free cores as processes. Dataset: processor time per row to plan an
epoch, and per sample to build a batch, with 1, 10 and 100 times the rows. Features are computed, not read. The last
line of standard output is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

STARTED = time.perf_counter()

import torch  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from audiolm_lite.adapters.tltr import TLTR  # noqa: E402
from audiolm_lite.config.keys import TRAINING_KEYS  # noqa: E402
from audiolm_lite.data.batching import Item  # noqa: E402
from audiolm_lite.distributed import processes  # noqa: E402
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel  # noqa: E402
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE  # noqa: E402
from audiolm_lite.training.brain import AudioLMBrain  # noqa: E402
from audiolm_lite.training.data_loader import WindowLoader  # noqa: E402

IMPORTED = time.perf_counter()
LAYERS, DIM, VOCABULARY, BATCH_TOKENS = 4, 64, 4000, 1600


class SyntheticItems(Dataset):
    """Any number of items of mixed length, computed when they are read."""

    def __init__(self, size: int):
        lengths = torch.randint(20, 120, (size, 2), generator=torch.Generator().manual_seed(0))
        self.frames, self.texts = lengths.unbind(1)
        self.lengths = (self.frames + self.texts).numpy()
        self.mixture = None

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the items are the same in each epoch."""

    def __getitem__(self, index: int) -> Item:
        """Compute one item."""
        frames, text = int(self.frames[index]), int(self.texts[index])
        ids = [AUDIO_SLOT] * frames + [3] * text
        labels = [IGNORE] * (frames + text // 2) + [3] * (text - text // 2)
        return Item({"id": str(index)}, ids, labels, features=torch.zeros(LAYERS, frames, DIM))


def make_brain(folder: str) -> AudioLMBrain:
    """Build a small model and the training loop, distributed over all processes."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=VOCABULARY,
    )  # fmt: skip
    llm = AutoModelForCausalLM.from_config(config)
    llm = get_peft_model(llm, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]))
    model = AudioLanguageModel(TLTR(feature_dim=DIM, num_layers=LAYERS, llm_dim=256), llm)
    hparams = {name: key.default for name, key in TRAINING_KEYS.items()} | {
        "precision": "fp32",
        "stage": 1,
        "output_folder": folder,
        "trainable": ["adapter.*", "llm.*lora_*"],
        "learning_rates": {"*": 1e-4},
    }
    brain = AudioLMBrain(model, hparams, {"device": "cpu", "noprogressbar": True})
    brain.total_steps = 10**6
    brain.engine.distribute()
    brain.modules["model"] = brain.engine.module
    brain.modules.train()
    return brain


def train(steps: int) -> dict:
    """Time the optimiser steps of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        brain = make_brain(folder)
        loader = WindowLoader(SyntheticItems(2000), BATCH_TOKENS, ranks=2)  # two batches for any number of processes
        seconds, samples, losses = [], 0, []
        for number, window in enumerate(loader.batches(epoch=1)):
            started = time.perf_counter()
            record = brain.fit_batch(window)
            if number >= 2:  # the first ones allocate buffers
                seconds.append(time.perf_counter() - started)
                samples += record["samples"]
            losses.append(record["loss"])
            if number == steps + 1:
                break
    return {"samples_per_second": samples / sum(seconds), "seconds_per_step": median(seconds), "losses": losses}


def train_in_processes(processes: int, steps: int) -> dict:
    """Run `train` in a number of processes; returns its result and the time of their imports."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker", "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def cost_per_sample(size: int, batches: int) -> dict:
    """Processor time per row to plan an epoch of `size` rows, and per sample to collate batches."""
    dataset = SyntheticItems(size)
    started = time.process_time()
    loader = WindowLoader(dataset, BATCH_TOKENS, shuffle=True)
    loader.windows(1)
    planned = time.process_time() - started
    reader = loader.batches(1)
    next(reader)
    started = time.process_time()
    samples = sum(len(batch.ids) for _, window in zip(range(batches), reader) for batch in window)
    return {
        "rows": size,
        "plan_microseconds_per_row": planned / size * 1e6,
        "collate_microseconds_per_sample": (time.process_time() - started) / samples * 1e6,
    }


def main() -> None:
    """Print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed optimiser steps per run")
    parser.add_argument("--rounds", type=int, default=3, help="runs per number of processes, in turn")
    parser.add_argument("--rows", type=int, default=5000, help="rows of the smallest dataset")
    parser.add_argument("--worker", action="store_true", help="used internally: take the steps and print their time")
    options = parser.parse_args()
    if options.worker:
        processes.start_process_group("cpu")
        result = train(options.steps)
        if processes.is_main():
            print(json.dumps({**result, "import_seconds": IMPORTED - STARTED}), flush=True)
        return
    runs: dict[int, list[dict]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for count, results in runs.items():
            results.append(train_in_processes(count, options.steps))
            print(f"{count} processes: {results[-1]['samples_per_second']:.1f} samples/s", file=sys.stderr)
    speeds = {number: median(run["samples_per_second"] for run in results) for number, results in runs.items()}
    pairs = zip(runs[1][0]["losses"], runs[2][0]["losses"], strict=True)
    sizes = [cost_per_sample(options.rows * factor, 40) for factor in (1, 10, 100)]
    costs = [entry["plan_microseconds_per_row"] + entry["collate_microseconds_per_sample"] for entry in sizes]
    print(
        json.dumps(
            {
                "speedup_2_processes": speeds[2] / speeds[1],
                "loss_difference": max(abs(one - two) / one for one, two in pairs),
                "cost_ratio_100x": costs[2] / costs[0],
                "import_seconds": median(run["import_seconds"] for results in runs.values() for run in results),
                "samples_per_second": speeds,
                "datasets": sizes,
                "cores": len(os.sched_getaffinity(0)),
                "rounds": options.rounds,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
