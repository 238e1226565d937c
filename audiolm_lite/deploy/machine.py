"""What compiled code needs from this machine and depends on: a C++ compiler, the CPU or GPU."""

import platform
from pathlib import Path

import torch

from audiolm_lite.config.errors import UserError


class BackendError(UserError, RuntimeError):
    """A backend that cannot be used on this machine or for this LLM; the message says why and what to do."""


def missing_compiler() -> str | None:
    """Return None, or what to install if PyTorch finds no C++ compiler.

    Examples
    --------
    >>> print(missing_compiler())
    None
    """
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler; install g++ (Debian, Ubuntu: apt install g++) or set CXX"
    return None


def machine_facts(device: torch.device | None = None) -> list[str]:
    """Return what native code is compiled for: the CPU's instruction set, the number of threads and the GPU.

    Parameters
    ----------
    device : torch.device, optional
        Device of the LLM; None is the CPU.

    Examples
    --------
    >>> machine_facts()[0] == platform.system()
    True
    """
    facts = [platform.system(), platform.machine(), platform.processor(), str(torch.get_num_threads())]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        facts += [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    if device is not None and device.type == "cuda":
        facts += [str(device), torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    return facts
