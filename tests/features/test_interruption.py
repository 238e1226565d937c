"""Extraction killed at random times and started again gives the store of an uninterrupted one, to the last bit."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.features.extract import Summary
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.verify import verify
from tests.features.kills import extract_in_small_shards

ROOT = Path(__file__).parents[2]
CLIPS, KILLS = 120, 25


@pytest.fixture
def rows(tmp_path):
    """Manifest rows of random clips of 0.2 to 1.9 s."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(CLIPS):
        samples = chance.uniform(-0.5, 0.5, chance.integers(3000, 30000))
        soundfile.write(tmp_path / f"{i}.wav", samples, 16000)
        rows.append({"audio": f"{i}.wav", "start": 0.0, "duration": len(samples) / 16000})
    return rows


@pytest.fixture
def run(tmp_path, sources, rows):
    """Extraction of these clips into a folder."""
    encoder = WhisperEncoder(str(sources / "whisper"))
    return partial(extract_in_small_shards, rows=rows, encoder=encoder, audio_root=tmp_path)


def test_temporary_files_of_dead_processes_are_deleted(run, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("store.json", "keys.safetensors", "rejected.jsonl", "features-00-00007.safetensors"):
        (folder / f".{name}.4711.tmp").write_text("{")
        (folder / f"{name}.4711.tmp").write_text("{")  # as earlier versions called them
    run(folder)
    assert not list(folder.glob("*.tmp")) and len(FeatureStore(folder)) == CLIPS


def test_killed_and_restarted_25_times(run, rows, sources, tmp_path):
    uninterrupted, folder = tmp_path / "uninterrupted", tmp_path / "killed"
    started = time.monotonic()
    run(uninterrupted)
    settings = {"folder": str(folder), "rows": rows, "whisper": str(sources / "whisper"), "audio_root": str(tmp_path)}
    settings |= {"seconds": time.monotonic() - started, "kills": KILLS}
    command = [sys.executable, "-m", "tests.features.kills", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=240)
    counts = json.loads(done.stdout.splitlines()[-1])
    assert len(set(counts)) > 3  # there was something to lose when the kills came
    summary = run(folder)
    assert (summary.stored + summary.skipped, summary.rejected) == (CLIPS, 0)
    assert run(folder) == Summary(0, CLIPS, 0)
    expected, store = FeatureStore(uninterrupted), FeatureStore(folder)
    assert sorted(store) == sorted(expected)  # lists: nothing is missing, nothing is there twice
    assert all(torch.equal(store[key], expected[key]) for key in store)
    assert verify(folder) == {} and not list(folder.glob("*.tmp"))
