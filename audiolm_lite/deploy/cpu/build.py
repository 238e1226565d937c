"""Compile the C++ code of this folder once, into the user's cache folder, and load it."""

import ctypes
import hashlib
import json
import os
import subprocess
from functools import cache
from pathlib import Path

from audiolm_lite.deploy.machine import BackendError, machine_facts
from audiolm_lite.storage.atomic import atomic_folder, write_text
from audiolm_lite.storage.cache import cache_folder

SOURCES = ("step.cpp", "attention.h", "formats.h", "lanes.h", "team.h")
# GCC notes that functions with vectors as arguments changed between its versions; they are never called across files.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")


def compiler_command(instructions: str = "native") -> list[str]:
    """Return the command without sources and output: the compiler that PyTorch uses, and the flags.

    Parameters
    ----------
    instructions : str
        Instruction set: "native" for all of this CPU, or another value of the compiler's -march, such as "x86-64-v3".

    Examples
    --------
    >>> compiler_command()[1]
    '-O3'
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    return [get_cpp_compiler(), *FLAGS, f"-march={instructions}"]


@cache
def load_library(instructions: str = "native") -> ctypes.CDLL:
    """Compile the code, unless the cache folder has it, and load it.

    Parameters
    ----------
    instructions : str
        As in `compiler_command`.

    Raises
    ------
    BackendError
        The compiler does not accept the code; the message ends with its own.

    Examples
    --------
    >>> load_library().instructions().decode() != ""
    True
    """
    command = compiler_command(instructions)
    folder = Path(__file__).parent
    key = {
        "command": command,
        "compiler": subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout,
        "sources": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SOURCES},
        "machine": machine_facts(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    target = cache_folder() / "compiled" / f"cpu-{digest}"
    if not target.exists():
        try:
            with atomic_folder(target) as unfinished:
                result = subprocess.run(
                    [*command, str(folder / "step.cpp"), "-o", str(unfinished / "step.so")],
                    capture_output=True,
                    text=True,
                    env={**os.environ, "LC_ALL": "C"},
                )
                if result.returncode != 0:
                    raise BackendError(f"cpu: {command[0]} cannot compile step.cpp: {result.stderr[-2000:]}")
                write_text(unfinished / "fingerprint.json", json.dumps(key, indent=1) + "\n")
        except OSError:
            if not target.exists():  # otherwise another process has finished the same compilation first
                raise
    library = ctypes.CDLL(str(target / "step.so"))
    library.packed_bytes.restype = ctypes.c_int64
    library.make_engine.restype = ctypes.c_void_p
    library.instructions.restype = ctypes.c_char_p
    return library
