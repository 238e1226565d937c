"""What does this project's training save against a plain loop? Time, memory, checkpoint size, and is the loss the same?

    python benchmarks/train_step.py

The plain loop does what recipes of audio language models commonly do: random batches padded to the longest item, logits
of all positions in float32, checkpoints of the whole model. Both train the same parameters (adapter and LoRA) of the
same random model on the same items of mixed length, as many in a batch on average. On the CPU a small Llama with a
vocabulary of 128k; where there is a GPU the geometry of Llama-3.2-1B and 3B with TLTR on 32 layers of 1280, bfloat16,
and with 4-bit weights where bitsandbytes is installed.

Times are medians over rounds in which the two take turns. Peak memory is measured in a process for each: on the CPU the
growth of its resident memory since before the model was made, on the GPU what torch has allocated. On a GPU also the
model's operations a second, and their share of what the card can do (null for a card that is not in the table).
--compile times our side with compiled blocks, too, after an epoch that compiles them. The last line of standard output
is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.config.keys import TRAINING_KEYS
from audiolm_lite.data.batching import Item, LengthBucketSampler, collate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.modeling.quantization import bitsandbytes_config
from audiolm_lite.modeling.transformer_blocks import compile_blocks
from audiolm_lite.plan.measure import MALLOC_SETTINGS, process_memory, reset_resident_peak
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.checkpoint import CheckpointFolder, random_state

LLAMA = {"vocab_size": 128256, "max_position_embeddings": 2048, "tie_word_embeddings": True}
# name -> LLM, and layers L, dimension D and most frames of the features
GEOMETRIES = {
    "small": (
        LlamaConfig(hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, **LLAMA),
        (4, 48, 75),
    ),
    "llama-3.2-1b": (
        LlamaConfig(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, head_dim=64, **LLAMA,
        ),
        (32, 1280, 75),
    ),
    "llama-3.2-3b": (
        LlamaConfig(
            hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
            num_key_value_heads=8, head_dim=128, **LLAMA,
        ),
        (32, 1280, 75),
    ),
}  # fmt: skip
# Dense bfloat16 operations a second (summed in float32), as their maker states them, for the utilisation.
PEAK_FLOPS = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12,
    "A100": 312e12, "A40": 150e12, "A30": 165e12, "A10": 125e12, "A10G": 70e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "RTX 6000 Ada": 364e12, "RTX A6000": 155e12, "RTX 5090": 209e12, "RTX 4090": 165e12,
    "RTX 4080": 97e12, "RTX 3090": 71e12,
}  # fmt: skip


def make_items(count: int, shape: tuple[int, int, int], vocabulary: int) -> list[Item]:
    """Items of 5 to the most frames, 10 to 50 tokens of prompt and 5 to 45 of answer."""
    generator = torch.Generator().manual_seed(0)
    layers, dim, most = shape

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    items = []
    for index in range(count):
        frames, prompt, answer = number(5, most), number(10, 50), number(5, 45)
        words = torch.randint(3, vocabulary, (prompt + answer,), generator=generator).tolist()
        labels = [IGNORE] * (frames + prompt) + words[prompt:]
        features = torch.randn(layers, frames, dim, generator=generator).half()
        items.append(Item({"id": str(index)}, [AUDIO_SLOT] * frames + words, labels, features=features))
    return items


def make_model(geometry: str, device: str, quantised: bool) -> AudioLanguageModel:
    """Random weights; adapter in float32, LLM in bfloat16 on a GPU."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config, (layers, dim, _) = GEOMETRIES[geometry]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if quantised:
        with tempfile.TemporaryDirectory() as folder:
            llm.save_pretrained(folder)
            options = {"quantization_config": bitsandbytes_config("llm", "4bit", dtype), "device_map": device}
            llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    adapter = TLTR(feature_dim=dim, num_layers=layers, llm_dim=config.hidden_size)
    return AudioLanguageModel(adapter, get_peft_model(llm, lora))


def make_brain(model: AudioLanguageModel, folder: str, device: str, batch_tokens: int) -> AudioLMBrain:
    """This project's training loop on a model; it also decides what trains."""
    hparams = {name: key.default for name, key in TRAINING_KEYS.items()} | {
        "stage": 1,
        "output_folder": folder,
        "trainable": ["adapter.*", "llm.*lora_*"],
        "learning_rates": {"*": 1e-4},
        "batch_tokens": batch_tokens,
        "precision": "bf16" if device == "cuda" else "fp32",
    }
    brain = AudioLMBrain(model, hparams, {"device": device, "noprogressbar": True})
    brain.total_steps = 10**6
    brain.modules.train()
    return brain


class Ours:
    """The project's own step on its own batches."""

    def __init__(self, model: AudioLanguageModel, items: list[Item], folder: str, device: str, batch_items: int):
        self.items, self.model = items, model
        lengths = [len(item.input_ids) for item in items]
        # the budget that gives as many batches as the plain loop has
        budget = max(max(lengths), batch_items * sum(lengths) // len(lengths))
        self.brain = make_brain(model, folder, device, budget)
        self.sampler = LengthBucketSampler(lengths, budget)

    def batches(self, epoch: int) -> list[list[int]]:
        """Item numbers of each batch."""
        return self.sampler.batches(epoch)

    def step(self, indices: list[int]) -> None:
        """Take one optimiser step."""
        self.brain.fit_batch([collate([self.items[i] for i in indices])])

    def checkpoint_bytes(self, folder: Path) -> int:
        """Size of a checkpoint."""
        state = {"optimizer": self.brain.optimizer.state_dict(), "random": random_state()}
        CheckpointFolder(folder, "loss").save(self.brain.trained, state, {"step": 1})
        return _folder_bytes(folder)


class Plain:
    """What recipes commonly do."""

    def __init__(self, model: AudioLanguageModel, items: list[Item], folder: str, device: str, batch_items: int):
        self.items, self.model, self.device, self.batch_items = items, model, device, batch_items
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
        make_brain(model, folder, device, 1)  # freezes what does not train, and moves the model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def batches(self, epoch: int) -> list[list[int]]:
        """Item numbers of each batch."""
        order = list(range(len(self.items)))
        random.Random(epoch).shuffle(order)
        return [order[i : i + self.batch_items] for i in range(0, len(order), self.batch_items)]

    def loss(self, indices: list[int]) -> torch.Tensor:
        """Mean cross-entropy from the logits of all positions."""
        batch = collate([self.items[i] for i in indices]).to(self.device)
        with self.autocast:
            embedded = self.model.embed(batch)
            logits = self.model.llm(inputs_embeds=embedded, attention_mask=batch.attention_mask.long()).logits
            logits = logits.float()[:, :-1].contiguous()
            return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)

    def step(self, indices: list[int]) -> None:
        """Take one optimiser step."""
        loss = self.loss(indices)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()  # for the log

    def checkpoint_bytes(self, folder: Path) -> int:
        """Size of a checkpoint."""
        folder.mkdir()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "model.pt")
        return _folder_bytes(folder)


SIDES = {"plain": Plain, "ours": Ours}


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _epoch_seconds(side: Ours | Plain, epoch: int, device: str) -> float:
    started = time.perf_counter()
    for indices in side.batches(epoch):
        side.step(indices)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(name: str, options: argparse.Namespace, device: str) -> int:
    """Bytes that one side takes at most, weights included, over the batches with its most and its longest items."""
    items = make_items(options.items, GEOMETRIES[options.geometry][1], LLAMA["vocab_size"])
    before = reset_resident_peak() if device == "cpu" else 0
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(options.geometry, device, options.quantised)
        side = SIDES[name](model, items, folder, device, options.batch_items)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        batches = side.batches(0)
        tokens = [len(batch) * max(len(items[i].input_ids) for i in batch) for batch in batches]
        largest = sorted(range(len(batches)), key=tokens.__getitem__)[-3:]
        for index in largest:
            side.step(batches[index])
    return process_memory("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated()


def _peak_elsewhere(name: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--peak_of", name, "--geometry", options.geometry]
    command += ["--items", str(options.items), "--batch_items", str(options.batch_items)]
    command += ["--quantised"] if options.quantised else []
    done = subprocess.run(command, env={**os.environ, **MALLOC_SETTINGS}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def benchmark(options: argparse.Namespace, device: str) -> dict:
    """All figures of one geometry; a quantised LLM runs on our side only."""
    items = make_items(options.items, GEOMETRIES[options.geometry][1], LLAMA["vocab_size"])
    names = ["ours"] if options.quantised else list(SIDES)
    result: dict = {"geometry": options.geometry, "quantised": options.quantised}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(options.geometry, device, options.quantised)
        sides = {name: SIDES[name](model, items, folder, device, options.batch_items) for name in names}
        for side in sides.values():
            side.step(side.batches(0)[0])
        if not options.quantised:
            result["loss_difference"] = _loss_difference(sides, list(range(min(16, len(items)))), device)
            sizes = {name: side.checkpoint_bytes(Path(folder) / name) for name, side in sides.items()}
            result["checkpoint_bytes"] = sizes
        if device == "cuda":  # uncounted: the first epoch selects kernels and grows the allocator's cache
            for side in sides.values():
                _epoch_seconds(side, 0, device)
        times: dict[str, list[float]] = {name: [] for name in names}
        for epoch in range(options.rounds):
            for name, side in sides.items():
                times[name].append(_epoch_seconds(side, epoch, device))
                print(f"{options.geometry}, {name}: {times[name][-1]:.1f} s", file=sys.stderr)
        ours, tokens = sides["ours"], sum(len(item.input_ids) for item in items)
        if options.compile:  # last, since both sides run the same blocks
            compile_blocks(model.llm)
            print(f"compiled in {_epoch_seconds(ours, 0, device):.1f} s", file=sys.stderr)
            times["compiled"] = [_epoch_seconds(ours, epoch, device) for epoch in range(options.rounds)]
            result["compile_ratio"] = median(times["ours"]) / median(times["compiled"])
        if device == "cuda":
            peak = peak_flops(torch.cuda.get_device_name())
            result["peak_flops"] = peak
            result["model_flops_per_second"] = _flops(ours) / median(times["ours"])
            result["model_flops_utilisation"] = peak and result["model_flops_per_second"] / peak
        del sides, model, ours
    if device == "cuda":
        torch.cuda.empty_cache()
    seconds = {name: median(values) for name, values in times.items()}
    peaks = {name: _peak_elsewhere(name, options) for name in names}
    result |= {
        "seconds_per_epoch": seconds,
        "samples_per_second": {name: len(items) / value for name, value in seconds.items()},
        "tokens_per_second": {name: tokens / value for name, value in seconds.items()},
        "peak_bytes": peaks,
    }
    if not options.quantised:
        result["throughput_ratio"] = seconds["plain"] / seconds["ours"]
        result["peak_memory_ratio"] = peaks["ours"] / peaks["plain"]
        result["checkpoint_bytes_ratio"] = sizes["ours"] / sizes["plain"]
    return result


def peak_flops(device: str) -> float | None:
    """Entry of `PEAK_FLOPS` for a GPU by the name that CUDA gives it; None where the table does not have it."""
    found = [part for part in PEAK_FLOPS if re.search(rf"\b{part}\b", device)]
    return PEAK_FLOPS[max(found, key=len)] if found and "Laptop" not in device else None


def _loss_difference(sides: dict, indices: list[int], device: str) -> float:
    """Relative difference of the mean loss of the same items, with the same weights."""
    batch = collate([sides["ours"].items[i] for i in indices]).to(device)
    with torch.no_grad(), sides["plain"].autocast:
        loss = sides["ours"].model(batch)
    ours, plain = float(loss.total / loss.tokens), float(sides["plain"].loss(indices))
    return abs(ours - plain) / plain


def _flops(side: Ours) -> float:
    """Floating point operations of an epoch, recomputation and padding not among the reasons to run a model twice."""
    counter = FlopCounterMode(display=False)
    batches = side.batches(0)
    with counter:
        side.step(batches[0])
    done = sum(len(side.items[i].input_ids) for i in batches[0])
    return counter.get_total_flops() * sum(len(item.input_ids) for item in side.items) / done


def main() -> None:
    """Run what this machine can, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, help="default: small on the CPU, the others on a GPU")
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--batch_items", type=int, default=8, help="items of a batch, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantised", action="store_true", help="the LLM in 4 bits, on our side only")
    parser.add_argument("--compile", action="store_true", help="time our side with compiled blocks, too")
    parser.add_argument("--peak_of", choices=SIDES, help="print the peak memory of one side and end")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.peak_of:
        print(json.dumps({"peak": peak_memory(options.peak_of, options, device)}))
        return
    runs = [(options.geometry, options.quantised)]
    missing = {}
    if options.geometry is None:
        large = [name for name in GEOMETRIES if name != "small"]
        runs = [(name, False) for name in large] if device == "cuda" else [("small", False)]
        if device == "cpu":
            missing = {name: "needs an NVIDIA GPU" for name in [*large, "4 bits"]}
        elif importlib.util.find_spec("bitsandbytes") is None:
            missing = {"4 bits": "needs bitsandbytes: pip install bitsandbytes"}
        else:
            runs += [(name, True) for name in large]
    results = []
    for name, quantised in runs:
        run = argparse.Namespace(**{**vars(options), "geometry": name, "quantised": quantised})
        results.append(benchmark(run, device))
        print(json.dumps(results[-1]), flush=True)  # what there is, should time run out
    keys = ("throughput_ratio", "peak_memory_ratio", "checkpoint_bytes_ratio", "loss_difference")
    print(
        json.dumps(
            {
                **{key: results[0].get(key) for key in keys},
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "items": options.items,
                "rounds": options.rounds,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "results": results,
                "missing": missing,
            }
        )
    )


if __name__ == "__main__":
    main()
