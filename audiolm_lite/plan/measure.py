"""Real training steps on the planned batches: the memory they take and, on a GPU, the largest safe token budget."""

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
from audiolm_lite.plan.batches import padded_batch
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_model

# With these glibc maps larger blocks separately and returns them at once, so that resident memory follows the tensors.
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def restart_with_malloc_settings(argv: Sequence[str]) -> None:
    """Restart this process with `MALLOC_SETTINGS` in its environment: glibc reads them only when a process starts."""
    if any(os.environ.get(name) != value for name, value in MALLOC_SETTINGS.items()):
        command = [sys.executable, "-m", "audiolm_lite", "plan", *argv]
        os.execve(sys.executable, command, {**os.environ, **MALLOC_SETTINGS})


def build_brain(hparams: Mapping, run_opts: Mapping) -> AudioLMBrain:
    """Build the experiment's training loop, with weights, ready for `fit_batch`."""
    model, _ = build_model(hparams)
    brain = hparams["brain"](model, dict(hparams), {**run_opts, "noprogressbar": True})
    brain.modules.train()
    return brain


def measure_step(brain: AudioLMBrain, item: Item, batch: Batch) -> int:
    """Bytes by which memory grows at most during an optimiser step on `batch`, without weights and AdamW's moments.

    On a GPU by torch's statistics, on the CPU by the resident memory of the process. A step on one item comes first, so
    that the moments and the buffers of libraries exist.
    """
    window = [batch] * brain.grad_accumulation_factor
    brain.fit_batch([padded_batch(item, 1)])
    gc.collect()
    if brain.device_type == "cuda":
        torch.cuda.reset_peak_memory_stats(brain.device)
        before = torch.cuda.memory_allocated(brain.device)
        brain.fit_batch(window)
        return torch.cuda.max_memory_allocated(brain.device) - before
    before = reset_resident_peak()
    brain.fit_batch(window)
    return process_memory("VmHWM") - before


def largest_batch_size(brain: AudioLMBrain, item: Item, limit: float) -> tuple[int, int]:
    """Find how many copies of an item a step on the GPU processes within `limit` bytes.

    Doubles the number until it does not fit, then bisects.

    Returns
    -------
    size : int
        0 if not even one item fits.
    reserved : int
        Bytes that torch reserved for a step on so many items.
    """
    fitting, reserved, failing = 0, 0, None
    size = 1
    while failing is None or failing - fitting > max(1, fitting // 16):
        used = _reserved_bytes(brain, padded_batch(item, size))
        if used is not None and used <= limit:
            fitting, reserved = size, used
        else:
            failing = size
        size = 2 * fitting if failing is None else (fitting + failing) // 2
        if size == fitting:
            break
    return fitting, reserved


def _reserved_bytes(brain: AudioLMBrain, batch: Batch) -> int | None:
    """Bytes that torch reserves on the GPU for a step, None if the GPU has too little memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(brain.device)
    try:
        brain.fit_batch([batch] * brain.grad_accumulation_factor)
    except torch.cuda.OutOfMemoryError:
        brain.optimizer.zero_grad(set_to_none=True)
        return None
    return torch.cuda.max_memory_reserved(brain.device)


def process_memory(entry: str) -> int:
    """Bytes of an entry of /proc/self/status: VmRSS, the resident memory, or VmHWM, its maximum.

    Examples
    --------
    >>> process_memory("VmRSS") <= process_memory("VmHWM")
    True
    """
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"^{entry}:\s+(\d+) kB", text, re.MULTILINE)
    if match is None:
        raise KeyError(entry)
    return int(match[1]) * 1024


def reset_resident_peak() -> int:
    """Set VmHWM to the current resident memory, and return that in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--measure on the CPU needs /proc/self/clear_refs of Linux: {error}") from error
    return process_memory("VmRSS")
