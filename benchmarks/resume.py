"""Does a killed run end like one that was left alone? python benchmarks/resume.py --rounds 50 [--seed 0]

Each round trains a tiny model (two sets mixed, windows of two batches, dropout, two epochs with validation), kills the
process with SIGKILL at random moments and starts it again until it ends, then compares losses and final weights with
those of the uninterrupted run, bit for bit. Checkpoints are written after every step, so that many kills hit one. The
last line of the output is JSON.
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
    """Start `train(folder)` in a process of its own, kill it after each number of seconds, then let it end.

    Returns
    -------
    dict
        How many kills there were, and how many of them while a checkpoint was being written.

    Raises
    ------
    RuntimeError
        The process ended otherwise.
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
        kills["while saving"] += bool(list(folder.rglob(".saving-*")))
    return kills


def main() -> None:
    """Run the rounds and print how many ended the same."""
    from tests.training.toy import outcome, train_in

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="in a round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        run_killed(train_in, Path(root, "warm-up"), [])
        began = time.monotonic()
        run_killed(train_in, Path(root, "whole"), [])
        seconds = time.monotonic() - began
        expected = outcome(Path(root, "whole"))
        total, same = {"kills": 0, "while saving": 0}, 0
        for number in range(options.rounds):
            folder = Path(root, f"round-{number}")
            found = run_killed(train_in, folder, [rng.uniform(0, seconds) for _ in range(options.kills)])
            total = {name: count + found[name] for name, count in total.items()}
            same += outcome(folder) == expected
            print(f"round {number + 1}: {found}, {same} of {number + 1} the same", flush=True)
    print(
        json.dumps({"rounds": options.rounds, "identical": same, **total, "seconds_uninterrupted": round(seconds, 2)})
    )


if __name__ == "__main__":
    main()
