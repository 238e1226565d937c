"""Tests. Importing any of them makes torchaudio importable, which transformers, peft and speechbrain import.

Many tests start interpreters, and most of a start is compiling the modules of torch and transformers. So all of them
keep bytecode in one folder, also where the environment turns that off.
"""

import os
import sys
from pathlib import Path

BYTECODE = str(Path(__file__).parents[1] / ".cache/bytecode")
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = BYTECODE
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import audiolm_lite  # noqa: E402, F401
