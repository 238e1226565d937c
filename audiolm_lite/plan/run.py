"""Estimate whether a stage fits into a GPU's memory, and which settings reduce it: audiolm-lite plan FILE.yaml --vram 8

The estimate needs the YAML file and the models' config.json, but no weights and no GPU. It is the memory of the worst
batch: that of the training set which needs most memory within batch_tokens. If the data is not prepared yet, items have
--audio_seconds, --text_tokens and --answer_tokens. The loss is that of loss_kernel: chunked. Any key of the YAML file
is also an option (--batch_tokens 4096).

--measure runs real training steps with the weights. On a GPU it finds the largest batch_tokens of each length bucket.
On the CPU it compares the growth of the process's memory with the estimate.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.precision import training_precision
from audiolm_lite.data.batching import Item
from audiolm_lite.modeling.batch import AUDIO_SLOT
from audiolm_lite.plan import measure
from audiolm_lite.plan.batches import assumed_item, bucket_items, largest_batch
from audiolm_lite.plan.meta_model import build_meta_model
from audiolm_lite.plan.process_memory import NCCL_ALLOWANCE, require_supported, sharded_fraction
from audiolm_lite.plan.simulate import Estimate, estimate

GIB = 2**30
# Memory of CUDA, cuBLAS and the allocator's rounding: an allowance, since it depends on GPU and driver.
CUDA_ALLOWANCE = 600 * 2**20
# Settings that need less memory, those with the least effect on the model and its speed first.
CHANGES = [
    ("parallel", "fsdp"),
    ("gradient_checkpointing", 1),
    ("loss_chunk", 128),
    ("optimizer", "adamw_8bit"),
    ("llm.lora.r", 8),
    ("llm.quantization", "8bit"),
    ("llm.quantization", "4bit"),
]
# Keys of CHANGES that the last alternative combines.
COMBINED = ("parallel", "gradient_checkpointing", "loss_chunk", "llm.quantization")


def main(argv: Sequence[str]) -> None:
    """Print the plan of a stage.

    Raises
    ------
    ConfigError
        The file is invalid, one item exceeds batch_tokens, or options contradict each other.
    """
    options, rest = _parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        hparams, run_opts, _ = load_experiment([*rest, "--output_folder", folder])
        hparams["processes"] = options.processes
        hparams["precision"] = training_precision(hparams["precision"], run_opts.get("device"))
        require_supported(hparams)
        on_gpu = torch.cuda.is_available() and run_opts.get("device") != "cpu"
        if options.measure and options.processes > 1:
            raise ConfigError("--measure runs steps in one process; leave out --processes")
        if options.measure and not on_gpu:
            measure.restart_with_malloc_settings(argv)
        items, description = _items(hparams, options)
        print(f"{options.file}: {description}")
        worst, needed = plan(hparams, items)
        print(_memory_table(hparams, items[worst], worst, needed))
        if options.vram is not None:
            print(f"\n{_advice(hparams, items[worst], needed, options.vram * GIB)}")
        if options.measure:
            limit = options.vram * GIB - allowance(hparams) if options.vram is not None else None
            print(f"\n{_measured(hparams, run_opts, items, limit, on_gpu)}")


def allowance(hparams: Mapping) -> int:
    """Bytes reserved for memory that is not computed.

    Examples
    --------
    >>> allowance({"processes": 1}) / 2**20, allowance({"processes": 2}) / 2**20
    (600.0, 1000.0)
    """
    return CUDA_ALLOWANCE + (NCCL_ALLOWANCE if hparams["processes"] > 1 else 0)


def plan(hparams: Mapping, items: Mapping[str, Item]) -> tuple[str, Estimate]:
    """Name of the bucket whose batches need most memory, and its estimate."""
    model = build_meta_model(hparams)[0]
    budget = hparams["batch_tokens"]
    estimates = {name: estimate(model, largest_batch(item, budget), hparams) for name, item in items.items()}
    worst = max(estimates, key=lambda name: estimates[name].total)
    return worst, estimates[worst]


def changed(hparams: Mapping, key: str, value: object) -> dict | None:
    """Copy settings with one key, or one entry of a block, changed.

    Returns
    -------
    dict or None
        None if the change does not reduce memory or is not possible.

    Examples
    --------
    >>> settings = {"gradient_checkpointing": 0, "llm": {"lora": {"r": 16}}}
    >>> changed(settings, "llm.lora.r", 8)
    {'gradient_checkpointing': 0, 'llm': {'lora': {'r': 8}}}
    >>> changed({"gradient_checkpointing": 2}, "gradient_checkpointing", 1) is None
    True
    """
    new = dict(hparams)
    *names, last = key.split(".")
    block = new
    for name in names:
        if block[name] is None:
            return None
        block[name] = copy.copy(block[name])
        block = block[name]
    before = block.get(last)
    reduces = before in (0, None) if last in ("gradient_checkpointing", "loss_chunk") else before != value
    if last == "r":
        reduces = before is not None and before > value
    if last == "parallel" and hparams.get("processes", 1) == 1:
        return None
    if last == "optimizer" and sharded_fraction(hparams) < 1:  # 8-bit optimisers cannot shard their state
        return None
    if last == "quantization" and (before == "4bit" or not _frozen_llm(hparams)):
        return None
    if not reduces:
        return None
    block[last] = value
    return new


def _frozen_llm(hparams: Mapping) -> bool:
    """Whether all weights of the LLM except a LoRA are frozen, so that they can be quantised."""
    model = build_meta_model(hparams)[0]
    return not any(p.requires_grad for name, p in model.llm.named_parameters() if "lora_" not in name)


def alternatives(hparams: Mapping) -> Iterator[tuple[str, dict]]:
    """Settings that need less memory: each change of CHANGES alone, then those of COMBINED together.

    Examples
    --------
    >>> settings = {"gradient_checkpointing": 0, "loss_chunk": 0, "optimizer": "adamw", "llm": {"lora": None}}
    >>> changes = alternatives(settings)
    >>> next(changes)[0], next(changes)[0]
    ('gradient_checkpointing: 1', 'loss_chunk: 128')
    """
    combined: dict = dict(hparams)
    labels: list[str] = []
    for key, value in CHANGES:
        other = changed(hparams, key, value)
        if other is None:
            continue
        yield f"{key}: {value}", other
        if key in COMBINED:
            combined = changed(combined, key, value) or combined
            labels = [label for label in labels if not label.startswith(key)] + [f"{key}: {value}"]
    if len(labels) > 1:
        yield ", ".join(labels), combined


def largest_budget(hparams: Mapping, item: Item, limit: float) -> tuple[Estimate, int]:
    """Estimate at the file's batch_tokens for batches of an item, and the largest batch_tokens within `limit` bytes.

    Memory is linear in the number of items, so that two estimates determine all others.
    """
    model = build_meta_model(hparams)[0]
    length = len(item.input_ids)
    size = max(1, hparams["batch_tokens"] // length)
    other = size // 2 or 2
    needed = estimate(model, largest_batch(item, size * length), hparams)
    slope = (needed.total - estimate(model, largest_batch(item, other * length), hparams).total) / (size - other)
    fitting = size + int((limit - needed.total) // slope)
    return needed, max(0, fitting) * length


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="audiolm-lite plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", help="YAML file of a stage")
    parser.add_argument("--vram", type=float, help="memory of the GPU in GiB")
    parser.add_argument("--processes", type=int, default=1, help="number of GPUs; the key `parallel` is the strategy")
    parser.add_argument("--measure", action="store_true", help="run real training steps")
    parser.add_argument("--audio_seconds", type=float, default=10.0, help="audio per item, if there is no data yet")
    parser.add_argument("--text_tokens", type=int, default=64, help="its tokens without audio and answer")
    parser.add_argument("--answer_tokens", type=int, default=64, help="tokens of its answer")
    options, rest = parser.parse_known_args(argv)
    for name in ("vram", "processes", "audio_seconds"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value:g}; it must be above 0")
    return options, [options.file, *rest]


def _items(hparams: Mapping, options: argparse.Namespace) -> tuple[dict[str, Item], str]:
    """Items to plan for, by name, and a description of their source."""
    model, tokenizer, source = build_meta_model(hparams)
    manifests = split_entries(hparams["manifests"].get("train") or [])[0]
    prepared = manifests and all(Path(manifest).is_file() for manifest in manifests)
    if prepared and (hparams["train_encoder"] or hasattr(source, "fingerprint")):
        return bucket_items(hparams, model, tokenizer), f"items of {', '.join(map(str, manifests))}"
    item = assumed_item(model, source, options.audio_seconds, options.text_tokens, options.answer_tokens)
    audio = f"{options.audio_seconds:g} s of audio ({item.input_ids.count(AUDIO_SLOT)} audio tokens)"
    text = f"{options.text_tokens} tokens of text and {options.answer_tokens} of answer"
    return {"assumed": item}, f"the data is not prepared; assumed items: {audio}, {text}"


def _memory_table(hparams: Mapping, item: Item, name: str, needed: Estimate) -> str:
    length = len(item.input_ids)
    llm = hparams["llm"]
    recomputed = hparams["gradient_checkpointing"]
    stored = {"LLM": llm.get("quantization") or llm.get("dtype", "float32")}
    rows = [(f"weights, {part} ({stored.get(part, 'float32')})", size) for part, size in needed.weights.items()]
    rows += [
        (f"optimiser ({hparams['optimizer']})", needed.optimizer),
        ("gradients", needed.gradients),
        *((f"saved for the backward pass, {part}", size) for part, size in needed.saved.items()),
        ("temporary, less what is freed at the peak", needed.temporary),
    ]
    if hparams["processes"] > 1:
        label = f"communication of {hparams['processes']} processes ({hparams['parallel']})"
        rows.append((label, needed.communication))
    rows += [
        ("CUDA and NCCL (an allowance, not computed)", allowance(hparams)),
        ("total" if hparams["processes"] == 1 else "total per process", needed.total + allowance(hparams)),
    ]
    return "\n".join(
        [
            f"worst batch: {hparams['batch_tokens'] // length} x {length} tokens ({name} items); precision "
            f"{hparams['precision']}, fused attention, "
            + ("no block" if not recomputed else "every block" if recomputed == 1 else f"one of {recomputed} blocks")
            + " recomputed",
            "",
            *(f"{label:<56}{size / 2**20:>12,.1f} MiB" for label, size in rows),
        ]
    )


def _advice(hparams: Mapping, item: Item, needed: Estimate, vram: float) -> str:
    """Whether the stage fits, and the memory and largest batch_tokens of other settings."""
    limit = vram - allowance(hparams)
    lines = [f"It {'fits' if needed.total <= limit else 'does not fit'} into {vram / GIB:g} GiB.", ""]
    lines.append(f"{'total':>11}  {'largest batch_tokens':>20}  with")
    for label, setting in [("the file's settings", hparams), *alternatives(hparams)]:
        estimated, budget = largest_budget(setting, item, limit)
        if setting is not hparams and estimated.total > 0.99 * needed.total:
            continue  # a saving of less than 1 %
        fits = "fits" if estimated.total <= limit else "    "
        total = (estimated.total + allowance(hparams)) / GIB
        lines.append(f"{total:>7.2f} GiB  {budget or 'none':>20}  {fits}  {label}")
    return "\n".join(lines)


def _measured(hparams: Mapping, run_opts: Mapping, items: Mapping[str, Item], limit: float | None, gpu: bool) -> str:
    brain = measure.build_brain(hparams, run_opts)
    if gpu and limit is None:
        limit = torch.cuda.mem_get_info(brain.device)[1] - CUDA_ALLOWANCE
    model = build_meta_model(hparams)[0]
    lines = [f"{'bucket':<10}{'items':>6}{'length':>8}{'estimated growth':>20}{'measured growth':>20}{'ratio':>8}"]
    budgets = []
    for name, item in items.items():
        batch = largest_batch(item, hparams["batch_tokens"])
        estimated, measured = estimate(model, batch, hparams).step, measure.measure_step(brain, item, batch)
        sizes = f"{estimated / 2**20:>16,.1f} MiB{measured / 2**20:>16,.1f} MiB{estimated / measured:>8.2f}"
        lines.append(f"{name:<10}{len(batch.ids):>6}{len(item.input_ids):>8}{sizes}")
        if gpu and limit is not None:
            size, reserved = measure.largest_batch_size(brain, item, limit)
            budgets.append(size * len(item.input_ids))
            lines.append(
                f"{'':<10}largest: {size} items, batch_tokens {budgets[-1]}, {reserved / GIB:.2f} GiB reserved"
            )
    if gpu:
        lines.append(f"safe for every bucket: batch_tokens {min(budgets)}")
    return "\n".join(lines)
