"""Extraction killed at random moments and started again ends in the store of an uninterrupted one, to the last bit."""

import os
import random
import signal
import time
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.features import extract as extract_module
from audiolm_lite.features.extract import Summary, extract
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.verify import verify
from audiolm_lite.features.writer import FeatureWriter

CLIPS, KILLS = 120, 25


@pytest.fixture
def run(tmp_path, sources, monkeypatch):
    """Extraction of random clips into a folder; shards are closed every 20 ms, so that kills meet all of its steps."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(CLIPS):
        samples = chance.uniform(-0.5, 0.5, chance.integers(3000, 30000))
        soundfile.write(tmp_path / f"{i}.wav", samples, 16000)
        rows.append({"audio": f"{i}.wav", "start": 0.0, "duration": len(samples) / 16000})
    monkeypatch.setattr(extract_module, "FeatureWriter", partial(FeatureWriter, flush_seconds=0.02))
    encoder = WhisperEncoder(str(sources / "whisper"))
    return partial(extract, rows, encoder, audio_root=tmp_path, batch_seconds=3)


def start(run, folder) -> int:
    """Process id of a fork that extracts: torch is loaded once, so that a restart takes milliseconds."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            run(folder)
        finally:
            os._exit(0)
    return child


def size_of(file) -> int:
    return file.stat().st_size if file.exists() else 0


def test_unfinished_files_of_dead_processes_go(run, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("store.json", "keys.safetensors", "rejected.jsonl"):
        (folder / f"{name}.4711.tmp").write_text("{")
    run(folder)
    assert not list(folder.glob("*.tmp")) and len(FeatureStore(folder)) == CLIPS


def test_killed_and_restarted_25_times(run, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    run(whole)
    took = time.monotonic() - started
    chance = random.Random(0)
    counts = set()
    for number in range(KILLS):
        before = size_of(folder / "index-00.jsonl")
        child = start(run, folder)
        if number % 2:  # these have lost what came after a shard; the others may not have got so far on a busy machine
            while size_of(folder / "index-00.jsonl") <= before and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, took / 40))
        else:
            time.sleep(chance.uniform(0, took / 5))
        with suppress(ProcessLookupError, ChildProcessError):  # it had finished
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if (folder / "store.json").exists():
            counts.add(len(FeatureStore(folder)))  # readable at any moment
    assert len(counts) > 3  # kills came while there was something to lose
    summary = run(folder)
    assert (summary.stored + summary.skipped, summary.rejected) == (CLIPS, 0)
    assert run(folder) == Summary(0, CLIPS, 0)
    expected, store = FeatureStore(whole), FeatureStore(folder)
    assert sorted(store) == sorted(expected)  # a list: nothing missing, nothing twice
    assert all(torch.equal(store[key], expected[key]) for key in store)
    assert verify(folder) == {} and not list(folder.glob("*.tmp"))
