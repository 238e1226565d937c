"""audiolm_lite: light audio language models (audio encoder -> small adapter -> LoRA-tuned LLM)."""

from audiolm_lite import torchaudio_stub

# Before anything imports speechbrain or transformers, which both import torchaudio.
torchaudio_stub.install()

__version__ = "0.1.0"
__all__ = ["AudioLM"]


def __getattr__(name: str):
    # Lazy: transformers and peft take seconds to import, and not everything here needs them.
    if name == "AudioLM":
        from audiolm_lite.inference import AudioLM

        return AudioLM
    raise AttributeError(f"module 'audiolm_lite' has no attribute {name!r}")
