"""Does a killed run end like an uninterrupted one? python benchmarks/resume.py --rounds 50 [--seed 0]

Each round trains a tiny model (two sets mixed, windows of two batches, dropout, two epochs with validation). It kills
the process with SIGKILL at random moments and starts it again until it ends. Then it compares losses and final weights
with those of the uninterrupted run, bit for bit. Checkpoints are written after each step, so that many kills interrupt
one. The last line of the output is JSON.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def run_killed(train: Callable[[Path], object], folder: Path, moments: list[float]) -> dict[str, int]:
    """Run `train(folder)` in a process that is killed after each number of seconds and finally ends by itself.

    Returns
    -------
    dict
        Number of kills, and number of those that interrupted the writing of a checkpoint.

    Raises
    ------
    RuntimeError
        The process ended with an error.
    """
    # forked from a process that has imported everything and computed nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train.__module__])
    kills = {"kills": 0, "while saving": 0}
    for moment in [*moments, None]:
        process = context.Process(target=train, args=(folder,))
        process.start()
        process.join(moment)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == 0:
            break
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"{folder}: the training process ended with exit code {process.exitcode}")
        kills["kills"] += 1
        kills["while saving"] += bool(list(folder.rglob(".step_*.tmp")))
    return kills


def main() -> None:
    """Run the rounds and print how many ended with the same losses and weights."""
    from tests.training.toy import outcome, train_in

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="per round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        run_killed(train_in, Path(root, "warm-up"), [])
        began = time.monotonic()
        run_killed(train_in, Path(root, "uninterrupted"), [])
        seconds = time.monotonic() - began
        expected = outcome(Path(root, "uninterrupted"))
        total, same = {"kills": 0, "while saving": 0}, 0
        for number in range(options.rounds):
            folder = Path(root, f"round-{number}")
            kills = run_killed(train_in, folder, [rng.uniform(0, seconds) for _ in range(options.kills)])
            total = {name: count + kills[name] for name, count in total.items()}
            same += outcome(folder) == expected
            print(f"round {number + 1}: {kills}, {same} of {number + 1} identical", flush=True)
    print(
        json.dumps({"rounds": options.rounds, "identical": same, **total, "seconds_uninterrupted": round(seconds, 2)})
    )


if __name__ == "__main__":
    main()
