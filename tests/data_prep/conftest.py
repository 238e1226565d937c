"""Recordings that the tests of manifest formats share."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

SECONDS, RATE = 4.0, 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with wav/a.wav and wav/b c.wav, both SECONDS long."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "wav").mkdir()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(SECONDS * RATE))
    for name in ("a", "b c"):
        soundfile.write(root / f"wav/{name}.wav", samples, RATE)
    return root
