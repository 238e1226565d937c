"""An extraction in several processes, by torchrun or by `--shard`, as `prepare.py` of a recipe runs it."""

import json
import multiprocessing
import os
import socket
import threading
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tqdm import tqdm

from audiolm_lite.features.store import FeatureStore
from data_prep.clips import Clip
from data_prep.prepare import SPLITS, prepare


def clips(folder):
    return [Clip("Toy", f"c{i}", Path(folder) / f"c{i}.wav", SPLITS[i % 3], f"g{i}", text="a") for i in range(12)]


def settings(folder, whisper, **changed):
    output = Path(folder) / "out"
    return {
        "output_folder": output,
        "feature_folder": output / "features",
        "encoder": {"type": "whisper", "source": whisper},
        "seed": 1,
        "wordings": "varied",
        "batch_seconds": 2.0,
        "num_workers": 0,
        "feature_dtype": "float16",
        "long_audio": "reject",
        "max_rejects": 0.2,
    } | changed


@pytest.fixture
def corpus(tmp_path):
    """A folder of twelve clips, one of which is too long for the encoder."""
    for i in range(12):
        samples = np.random.default_rng(i).uniform(-0.5, 0.5, 4000 + 2000 * i + 20000 * (i == 7))
        soundfile.write(tmp_path / f"c{i}.wav", samples, 16000)
    return tmp_path


def check(folder):
    store = FeatureStore(folder / "out/features")
    assert len(store) == 11
    rows = [json.loads(line) for split in SPLITS for line in (folder / f"out/{split}.jsonl").open(encoding="utf-8")]
    assert len({row["audio"] for row in rows}) == 11
    rejected = [json.loads(line) for line in (folder / "out/rejected.jsonl").open(encoding="utf-8")]
    assert [entry["id"] for entry in rejected] == ["c7"] and "longer than the 2 s" in rejected[0]["reason"]
    assert sorted(file.name for file in (folder / "out/features").glob("index*")) == [
        "index-00.jsonl",
        "index-01.jsonl",
    ]


def test_shards_then_a_run_without(corpus, sources, capsys):
    whisper = str(sources / "whisper")
    for shard in ("2/2", "1/2"):
        prepare(clips(corpus), settings(corpus, whisper, shard=shard), {"device": "cpu"})
        assert not (corpus / "out/train.jsonl").exists()
    printed = capsys.readouterr().out
    assert "part 2 of 2: Summary(stored=5, skipped=0, rejected=1" in printed
    assert "part 1 of 2: Summary(stored=6, skipped=0, rejected=0" in printed
    prepare(clips(corpus), settings(corpus, whisper), {"device": "cpu"})
    assert "part 1 of 1: Summary(stored=0, skipped=11, rejected=1" in capsys.readouterr().out
    check(corpus)


def prepare_as_rank(rank, port, corpus, whisper):
    """Run in a forked process with the environment of torchrun, since a new Python process takes seconds to start."""
    tqdm.set_lock(threading.RLock())  # the inherited lock would remain locked if this process were killed
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with (corpus / f"rank{rank}.txt").open("w") as printed, redirect_stdout(printed):
        prepare(clips(corpus), settings(corpus, whisper), {"device": "cpu"})


def test_ranks_of_torchrun(corpus, sources):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = partial(multiprocessing.get_context("fork").Process, target=prepare_as_rank)
    ranks = [start(args=(rank, port, corpus, str(sources / "whisper"))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=100)  # if one fails, the other waits for it
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    assert "part 1 of 1: Summary(stored=0, skipped=11, rejected=1" in (corpus / "rank0.txt").read_text()
    assert "part 1 of 1" not in (corpus / "rank1.txt").read_text()
    check(corpus)


def test_features_do_not_depend_on_the_number_of_parts(corpus, sources):
    """They are those of one process, to the accuracy of other batches."""
    whisper = str(sources / "whisper")
    stores = []
    for name, shards in (("one", [None]), ("three", ["1/3", "2/3", "3/3", None])):
        for shard in shards:
            options = {"feature_folder": corpus / name, "feature_dtype": "float32", "shard": shard}
            prepare(clips(corpus), settings(corpus, whisper, **options), {"device": "cpu"})
        stores.append(FeatureStore(corpus / name))
    for key in stores[0]:
        torch.testing.assert_close(stores[1][key], stores[0][key], rtol=0, atol=1e-5)
