"""Light audio language models: train, compress, evaluate and deploy them on a consumer GPU.

The user's interface is `audiolm_lite.AudioLM`. It is loaded on first use: importing the package loads neither torch
nor transformers.
"""

from typing import TYPE_CHECKING, Any

from audiolm_lite import torchaudio_fallback

if TYPE_CHECKING:
    from audiolm_lite.api import AudioLM as AudioLM

__version__ = "0.1.0"

torchaudio_fallback.install()  # before any module of the package imports torchaudio, or a library that does


def __getattr__(name: str) -> Any:
    if name == "AudioLM":
        from audiolm_lite.api import AudioLM

        return AudioLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
