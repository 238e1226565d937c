"""Extractions that are killed: python -m tests.features.kills SETTINGS

A child that is killed never releases a lock that it shares with its parent, and tqdm has such a lock. So the children
are forked from this process, which extracts nothing itself, and each child replaces tqdm's lock by one of its own.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.features import extract as extract_module
from audiolm_lite.features.extract import Summary, extract
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter

# Longest wait for a child to finish a shard; a child that takes longer is killed all the same.
WAIT_SECONDS = 60.0


def extract_in_small_shards(
    folder: Path, rows: list[dict], encoder: torch.nn.Module, audio_root: str | Path
) -> Summary:
    """Extract with a shard closed every 20 ms, so that kills interrupt every phase of the writer."""
    with mock.patch.object(extract_module, "FeatureWriter", partial(FeatureWriter, flush_seconds=0.02)):
        return extract(rows, encoder, folder, audio_root=audio_root, batch_seconds=3)


def start(folder: Path, rows: list[dict], encoder: torch.nn.Module, audio_root: str) -> int:
    """Fork a child that extracts, and return its process id; a start takes milliseconds, since torch is loaded."""
    child = os.fork()
    if child == 0:
        try:
            tqdm.set_lock(threading.RLock())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            extract_in_small_shards(folder, rows, encoder, audio_root)
        finally:
            os._exit(0)
    return child


def size_of(file: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return file.stat().st_size if file.exists() else 0


def main(folder: str, rows: list[dict], whisper: str, audio_root: str, seconds: float, kills: int) -> list[int]:
    """Start and kill `kills` extractions, each of which takes about `seconds`; returns the clips stored after each."""
    torch.set_num_threads(1)
    store, encoder = Path(folder), WhisperEncoder(whisper)
    index = store / "index-00.jsonl"
    chance = random.Random(0)
    counts = []
    for number in range(kills):
        before, deadline = size_of(index), time.monotonic() + WAIT_SECONDS
        child = start(store, rows, encoder, audio_root)
        running = True
        if number % 2:  # this child loses what followed a shard; the others may be killed before their first
            while running and size_of(index) <= before and time.monotonic() < deadline:
                time.sleep(0.001)
                running = os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(chance.uniform(0, seconds / 40))
        else:
            time.sleep(chance.uniform(0, seconds / 5))
        if running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if (store / "store.json").exists():
            counts.append(len(FeatureStore(store)))  # a store can be read at any time
    return counts


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
