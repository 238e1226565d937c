"""The same batches through the real step: what it takes, and on a GPU the largest budget that is safe."""

import gc
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.plan.batches import padded_rows
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_model

# The C library gives memory back at once where a block has its own mapping: so the process's size follows its tensors.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def restart_to_measure(argv: Sequence[str]) -> None:
    """Start this program anew with `RETURN_MEMORY` in its environment, which the C library reads at its start only."""
    if any(os.environ.get(name) != value for name, value in RETURN_MEMORY.items()):
        command = [sys.executable, "-m", "audiolm_lite", "plan", *argv]
        os.execve(sys.executable, command, {**os.environ, **RETURN_MEMORY})


def real_brain(hparams: Mapping, run_opts: Mapping) -> AudioLMBrain:
    """The experiment's model with its weights and training loop, ready to take steps."""
    model, _ = build_model(hparams)
    brain = hparams["brain"](model, dict(hparams), {**run_opts, "noprogressbar": True})
    brain.total_steps = 1
    brain.modules.train()
    return brain


def step_growth(brain: AudioLMBrain, item: Item, batch: Batch) -> int:
    """Bytes by which memory grows during an optimiser step on `batch`, at its worst; weights and moments not included.

    On a GPU torch's own count; on the CPU the process's resident memory, of which Linux keeps the maximum.
    A step on one item comes first, so that moments and the libraries' own buffers exist.
    """
    window = [batch] * brain.grad_accumulation_factor
    brain.fit_batch([padded_rows(item, 1)])
    gc.collect()
    if brain.device_type == "cuda":
        torch.cuda.reset_peak_memory_stats(brain.device)
        before = torch.cuda.memory_allocated(brain.device)
        brain.fit_batch(window)
        return torch.cuda.max_memory_allocated(brain.device) - before
    before = reset_resident_peak()
    brain.fit_batch(window)
    return resident("VmHWM") - before


def largest_rows(brain: AudioLMBrain, item: Item, limit: float) -> tuple[int, int]:
    """Most copies of an item that a step on the GPU takes within `limit` bytes, and what torch reserved for them.

    Doubles the rows until they do not fit, then halves the interval.
    """
    fitting, reserved, failing = 0, 0, None
    rows = 1
    while failing is None or failing - fitting > max(1, fitting // 16):
        used = _reserved(brain, padded_rows(item, rows))
        if used is not None and used <= limit:
            fitting, reserved = rows, used
        else:
            failing = rows
        rows = 2 * fitting if failing is None else (fitting + failing) // 2
        if rows == fitting:
            break
    return fitting, reserved


def _reserved(brain: AudioLMBrain, batch: Batch) -> int | None:
    """Bytes that torch reserved on the GPU for a step, None where they were not there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(brain.device)
    try:
        brain.fit_batch([batch] * brain.grad_accumulation_factor)
    except torch.cuda.OutOfMemoryError:
        brain.optimizer.zero_grad(set_to_none=True)
        return None
    return torch.cuda.max_memory_reserved(brain.device)


def resident(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{entry}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise KeyError(entry)
    return int(found[1]) * 1024


def reset_resident_peak() -> int:
    """Make VmHWM the present resident size, and return it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--measure on the CPU needs Linux's /proc/self/clear_refs: {error}") from error
    return resident("VmRSS")
