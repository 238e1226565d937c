"""Does a stage fit into a GPU's memory, and what makes it fit? audiolm-lite plan FILE.yaml --vram 8

From the YAML file and the models' config.json alone: no weight is read, no GPU is needed. The batch is the worst that
the token budget allows for the training set; where the data is not prepared yet, items of --audio_seconds with
--text_tokens and --answer_tokens. The loss is reckoned in chunks, whichever loss_kernel is set. Any key of the YAML
file is an option here, too (--batch_tokens 4096).

--measure takes real steps with the real weights. On a GPU it finds the largest batch_tokens of each length bucket; on
the CPU it compares the growth of the process's memory with the estimate.
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
from audiolm_lite.data.batching import Item
from audiolm_lite.modeling.batch import AUDIO_SLOT
from audiolm_lite.plan import measure
from audiolm_lite.plan.batches import assumed_item, bucket_items, fullest_batch
from audiolm_lite.plan.outline import outline_model
from audiolm_lite.plan.processes import NCCL_ALLOWANCE, require_known, share_of
from audiolm_lite.plan.simulate import Estimate, estimate

GIB = 2**30
# What CUDA, cuBLAS and the allocator's rounding take: an allowance, since it depends on GPU and driver.
CUDA_ALLOWANCE = 600 * 2**20
# What else could be set, mildest first.
CHANGES = [
    ("parallel", "fsdp"),
    ("gradient_checkpointing", 1),
    ("loss_chunk", 128),
    ("optimizer", "adamw_8bit"),
    ("llm.lora.r", 8),
    ("llm.quantization", "8bit"),
    ("llm.quantization", "4bit"),
]
TOGETHER = ("parallel", "gradient_checkpointing", "loss_chunk", "llm.quantization")


def main(argv: Sequence[str]) -> None:
    """Print the plan of a stage."""
    options, rest = _parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        hparams, run_opts, _ = load_experiment([*rest, "--output_folder", folder])
        hparams["processes"] = options.processes
        require_known(hparams)
        on_gpu = torch.cuda.is_available() and run_opts.get("device") != "cpu"
        if options.measure and options.processes > 1:
            raise ConfigError("--measure takes the steps of one process: leave out --processes")
        if options.measure and not on_gpu:
            measure.restart_to_measure(argv)
        items, described = _items(hparams, options)
        print(f"{options.file}: {described}")
        worst, needed = plan(hparams, items)
        print(_memory_table(hparams, items[worst], worst, needed))
        if options.vram is not None:
            print(f"\n{_advice(hparams, items[worst], needed, options.vram * GIB)}")
        if options.measure:
            limit = options.vram * GIB - allowance(hparams) if options.vram is not None else None
            print(f"\n{_measured(hparams, run_opts, items, limit, on_gpu)}")


def allowance(hparams: Mapping) -> int:
    """Bytes set aside for what is not computed."""
    return CUDA_ALLOWANCE + (NCCL_ALLOWANCE if hparams["processes"] > 1 else 0)


def plan(hparams: Mapping, items: Mapping[str, Item]) -> tuple[str, Estimate]:
    """The bucket whose batches need most memory, and what they need."""
    model = outline_model(hparams)[0]
    found = {
        name: estimate(model, fullest_batch(item, hparams["batch_tokens"]), hparams) for name, item in items.items()
    }
    worst = max(found, key=lambda name: found[name].total)
    return worst, found[worst]


def changed(hparams: Mapping, key: str, value: object) -> dict | None:
    """A copy with one key, or one entry of a block, set; None where that changes nothing or cannot be."""
    new = copy.copy(dict(hparams))
    *blocks, last = key.split(".")
    place = new
    for block in blocks:
        if place[block] is None:
            return None
        place[block] = copy.copy(place[block])
        place = place[block]
    before = place.get(last)
    less = before in (0, None) if last in ("gradient_checkpointing", "loss_chunk") else before != value
    if last == "r":
        less = before is not None and before > value
    if last == "parallel" and hparams.get("processes", 1) == 1:
        return None
    if last == "optimizer" and share_of(hparams) < 1:  # the 8-bit ones cannot share out their state
        return None
    if last == "quantization" and (before == "4bit" or not _frozen_llm(hparams)):
        return None
    if not less:
        return None
    place[last] = value
    return new


def _frozen_llm(hparams: Mapping) -> bool:
    """Whether the LLM's own weights stay as they are, so that they can be quantised."""
    model = outline_model(hparams)[0]
    return not any(p.requires_grad for name, p in model.llm.named_parameters() if "lora_" not in name)


def alternatives(hparams: Mapping) -> Iterator[tuple[str, dict]]:
    """Other settings that need less memory, one change each, then the strongest of them together."""
    together: dict = dict(hparams)
    labels: list[str] = []
    for key, value in CHANGES:
        other = changed(hparams, key, value)
        if other is None:
            continue
        yield f"{key}: {value}", other
        if key in TOGETHER:
            together = changed(together, key, value) or together
            labels = [label for label in labels if not label.startswith(key)] + [f"{key}: {value}"]
    if len(labels) > 1:
        yield ", ".join(labels), together


def largest_budget(hparams: Mapping, item: Item, limit: float) -> tuple[Estimate, int]:
    """What the file's batch_tokens need, and the largest batch_tokens that need less than `limit`, for one item.

    Memory grows by the same for each row, so that two numbers of rows tell all others.
    """
    model = outline_model(hparams)[0]
    length = len(item.input_ids)
    rows = max(1, hparams["batch_tokens"] // length)
    other = rows // 2 or 2
    needed = estimate(model, fullest_batch(item, rows * length), hparams)
    slope = (needed.total - estimate(model, fullest_batch(item, other * length), hparams).total) / (rows - other)
    fitting = rows + int((limit - needed.total) // slope)
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
    parser.add_argument("--processes", type=int, default=1, help="GPUs that train together, as `parallel` says")
    parser.add_argument("--measure", action="store_true", help="take real steps")
    parser.add_argument("--audio_seconds", type=float, default=10.0, help="of an item, where there is no data yet")
    parser.add_argument("--text_tokens", type=int, default=64, help="its prompt without audio and answer")
    parser.add_argument("--answer_tokens", type=int, default=64, help="its answer")
    options, rest = parser.parse_known_args(argv)
    return options, [options.file, *rest]


def _items(hparams: Mapping, options: argparse.Namespace) -> tuple[dict[str, Item], str]:
    """Items to plan for, by name, and in words where they come from."""
    model, tokenizer, source = outline_model(hparams)
    manifests = split_entries(hparams["manifests"].get("train") or [])[0]
    prepared = manifests and all(Path(manifest).is_file() for manifest in manifests)
    if prepared and (hparams["train_encoder"] or hasattr(source, "fingerprint")):
        return bucket_items(hparams, model, tokenizer), f"items of {', '.join(map(str, manifests))}"
    item = assumed_item(model, source, options.audio_seconds, options.text_tokens, options.answer_tokens)
    audio = f"{options.audio_seconds:g} s of audio ({item.input_ids.count(AUDIO_SLOT)} audio tokens)"
    text = f"{options.text_tokens} tokens of text and {options.answer_tokens} of answer"
    return {"assumed": item}, f"the data is not prepared, so items of {audio}, {text} are assumed"


def _memory_table(hparams: Mapping, item: Item, name: str, needed: Estimate) -> str:
    length = len(item.input_ids)
    llm = hparams["llm"]
    recomputed = hparams["gradient_checkpointing"]
    stored = {"LLM": llm.get("quantization") or llm.get("dtype", "float32")}
    rows = [(f"weights, {part} ({stored.get(part, 'float32')})", size) for part, size in needed.weights.items()]
    rows += [
        (f"optimiser ({hparams['optimizer']})", needed.optimizer),
        ("gradients", needed.gradients),
        *((f"kept for the backward pass, {part}", size) for part, size in needed.kept.items()),
        ("temporary, less what is not there at the worst moment", needed.temporary),
    ]
    if hparams["processes"] > 1:
        rows.append((f"exchange between {hparams['processes']} processes ({hparams['parallel']})", needed.exchange))
    rows += [
        ("CUDA and NCCL (an allowance, not computed)", allowance(hparams)),
        ("total" if hparams["processes"] == 1 else "total of a process", needed.total + allowance(hparams)),
    ]
    return "\n".join(
        [
            f"worst batch: {hparams['batch_tokens'] // length} x {length} tokens ({name} items); precision "
            f"{hparams['precision']}, fused attention, "
            + (f"every {recomputed}. block recomputed" if recomputed else "no block recomputed"),
            "",
            *(f"{label:<56}{size / 2**20:>12,.1f} MiB" for label, size in rows),
        ]
    )


def _advice(hparams: Mapping, item: Item, needed: Estimate, vram: float) -> str:
    """Whether it fits, and what other settings need and allow."""
    limit = vram - allowance(hparams)
    lines = [f"It {'fits' if needed.total <= limit else 'does not fit'} into {vram / GIB:g} GiB.", ""]
    lines.append(f"{'total':>11}  {'largest batch_tokens':>20}  with")
    for label, setting in [("the file's settings", hparams), *alternatives(hparams)]:
        estimated, budget = largest_budget(setting, item, limit)
        if setting is not hparams and estimated.total > 0.99 * needed.total:
            continue  # not worth a line
        fits = "fits" if estimated.total <= limit else "    "
        total = (estimated.total + allowance(hparams)) / GIB
        lines.append(f"{total:>7.2f} GiB  {budget or 'none':>20}  {fits}  {label}")
    return "\n".join(lines)


def _measured(hparams: Mapping, run_opts: Mapping, items: Mapping[str, Item], limit: float | None, gpu: bool) -> str:
    brain = measure.real_brain(hparams, run_opts)
    if gpu and limit is None:
        limit = torch.cuda.mem_get_info(brain.device)[1] - CUDA_ALLOWANCE
    model = outline_model(hparams)[0]
    lines = [f"{'bucket':<10}{'rows':>6}{'length':>8}{'estimated growth':>20}{'measured growth':>20}{'ratio':>8}"]
    budgets = []
    for name, item in items.items():
        batch = fullest_batch(item, hparams["batch_tokens"])
        estimated, grown = estimate(model, batch, hparams).step, measure.step_growth(brain, item, batch)
        sizes = f"{estimated / 2**20:>16,.1f} MiB{grown / 2**20:>16,.1f} MiB{estimated / grown:>8.2f}"
        lines.append(f"{name:<10}{len(batch.ids):>6}{len(item.input_ids):>8}{sizes}")
        if gpu and limit is not None:
            rows, reserved = measure.largest_rows(brain, item, limit)
            budgets.append(rows * len(item.input_ids))
            lines.append(f"{'':<10}largest: {rows} rows, batch_tokens {budgets[-1]}, {reserved / GIB:.2f} GiB reserved")
    if gpu:
        lines.append(f"safe for every bucket: batch_tokens {min(budgets)}")
    return "\n".join(lines)
