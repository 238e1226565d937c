"""Fixtures every test may use: one thread, fixed seeds, and the folders that only some machines have."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# One thread per worker: xdist runs a worker a core, and sums keep one order, so pinned values stay put.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(1986)
    np.random.seed(1986)
    torch.manual_seed(1986)


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set ({what})")
    folder = Path(value)
    # A set variable that points nowhere is a mistake to see, not a reason to skip.
    assert folder.is_dir(), f"{variable}={value} is not a folder"
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with selections of real corpora."""
    return _folder("AUDIOLM_LITE_REAL_DATA", "real corpora")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with reference tensors of the published systems."""
    return _folder("AUDIOLM_LITE_PARITY_DIR", "reference tensors of published systems")
