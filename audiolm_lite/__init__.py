"""Light audio language models: train, shrink, measure and ship them on the GPU one already has.

The user's interface is `audiolm_lite.AudioLM`; it is loaded on first use, so that importing the package stays fast.
"""

from typing import Any

from audiolm_lite import torchaudio_stub

__version__ = "0.1.0"
__all__ = ["AudioLM", "__version__"]

# Here, because every room is imported through this file: whichever reaches SpeechBrain first finds the stand-in.
torchaudio_stub.install()


def __getattr__(name: str) -> Any:
    if name == "AudioLM":
        from audiolm_lite.api import AudioLM

        return AudioLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
