"""The precision that this machine computes best: what `precision: auto` and `dtype: auto` mean."""

import logging

import torch

logger = logging.getLogger(__name__)

# Processors that multiply bfloat16 natively: x86 (AVX512-BF16, AMX) and ARM.
_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")


def multiplies_bf16(device: str | torch.device | None = None) -> bool:
    """Find out whether a device multiplies matrices in bfloat16 natively, which is faster than float32 there.

    Parameters
    ----------
    device : str or torch.device, optional
        None: a GPU if there is one, otherwise the CPU.

    Examples
    --------
    >>> multiplies_bf16("cpu") in (True, False)
    True
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(feature) for feature in _CPU_FEATURES)
    return torch.cpu._is_avx512_bf16_supported()  # torch 2.11


def float64_device(device: str | torch.device) -> torch.device:
    """Return where float64 tensors for the work of a device are: the device, or the CPU if it has no float64 (MPS).

    Examples
    --------
    >>> float64_device("cuda:1"), float64_device("mps")
    (device(type='cuda', index=1), device(type='cpu'))
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def training_precision(precision: str, device: str | torch.device | None = None) -> str:
    """Return the precision of training that a `precision` of the YAML file means on this machine.

    Parameters
    ----------
    precision : str
        "auto", "fp32", "bf16" or "fp16". "auto" is bf16 where the device multiplies it, otherwise fp32, and is logged.
    device : str or torch.device, optional
        As in `multiplies_bf16`.

    Examples
    --------
    >>> training_precision("fp32", "cpu")
    'fp32'
    >>> training_precision("auto", "cpu") == ("bf16" if multiplies_bf16("cpu") else "fp32")
    True
    """
    if precision != "auto":
        return precision
    chosen = "bf16" if multiplies_bf16(device) else "fp32"
    logger.info(
        "precision: %s (auto: this device %s bfloat16)",
        chosen,
        "multiplies" if chosen == "bf16" else "does not multiply",
    )
    return chosen
