"""Tests; importing any of them makes torchaudio importable, which transformers, peft and speechbrain import."""

import audiolm_lite  # noqa: F401
