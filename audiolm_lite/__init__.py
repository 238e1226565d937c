"""Light audio language models: train, compress, evaluate and deploy them on a consumer GPU.

The user's interface is `audiolm_lite.AudioLM`. It is loaded on first use: importing the package loads neither torch
nor transformers.
"""

import os
from typing import TYPE_CHECKING, Any

from audiolm_lite import torchaudio_fallback

if TYPE_CHECKING:
    from audiolm_lite.api import AudioLM as AudioLM

__version__ = "0.1.0"

torchaudio_fallback.install()  # before any module of the package imports torchaudio, or a library that does

# oneDNN, which multiplies matrices on the CPU, keeps compiled code and packed weights for the last 1024 shapes. Batches
# always have new shapes, so the memory of a process would grow for hours. It reads this when it is first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def __getattr__(name: str) -> Any:
    if name == "AudioLM":
        from audiolm_lite.api import AudioLM

        return AudioLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
