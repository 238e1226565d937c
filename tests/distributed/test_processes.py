"""Communication of processes, without a process group and in a group of two."""

import multiprocessing
import socket

import pytest
import torch

from audiolm_lite.distributed import processes


def test_a_single_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes.start_process_group(None) is None and processes.start_process_group("cuda:1") == "cuda:1"
    processes.wait_for_all_ranks()
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.gather("a") == ["a"]
    assert processes.any_rank(stop=True, save=False) == {"stop": True, "save": False}
    assert processes.sum_over_processes(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(KeyError, match="lost"):
        processes.any_rank(KeyError("lost"))


def communicate(rank, port, results):
    """What a process of a group of two sees."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_PORT", port)
        seen = [processes.start_process_group("cpu"), processes.rank(), processes.world_size(), processes.is_main()]
        seen.append(processes.gather(rank * 10))
        with pytest.MonkeyPatch.context() as numbers:  # flags are exchanged at every step: as numbers, not as pickles
            numbers.delattr(torch.distributed, "all_gather_object")
            seen.append(processes.any_rank(save=rank == 1, stop=False))
        seen.append(processes.sum_over_processes(torch.tensor([rank + 1])).tolist())
        try:
            processes.any_rank(OSError("disk full") if rank == 1 else None)
        except (OSError, processes.PeerError) as error:
            seen.append(f"{type(error).__name__}: {error}")
        results.put(seen)


def test_two_processes_exchange_values_flags_and_errors():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    results = [context.SimpleQueue() for _ in range(2)]
    ranks = [context.Process(target=communicate, args=(rank, port, results[rank])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=100)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    same = [[0, 10], {"save": True, "stop": False}, [3]]
    error = "PeerError: process 1 of 2 failed, so all stop: OSError: disk full"
    assert results[0].get() == ["cpu", 0, 2, True, *same, error]
    assert results[1].get() == ["cpu", 1, 2, False, *same, "OSError: disk full"]
