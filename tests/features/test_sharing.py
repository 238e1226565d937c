"""One extraction in several processes: by torchrun, and by `--shard`, through a recipe's own command."""

import json
import os
import socket
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed.partition import Partition, parse_partition
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


def test_shards_then_a_plain_run(corpus, sources, capsys):
    whisper = str(sources / "whisper")
    for shard in ("2/2", "1/2"):
        prepare(clips(corpus), settings(corpus, whisper, shard=shard), {"device": "cpu"})
        assert not (corpus / "out/train.jsonl").exists()
    shown = capsys.readouterr().out
    assert "share 2 of 2: Summary(stored=5, skipped=0, rejected=1" in shown
    assert "share 1 of 2: Summary(stored=6, skipped=0, rejected=0" in shown
    prepare(clips(corpus), settings(corpus, whisper), {"device": "cpu"})
    assert "share 1 of 1: Summary(stored=0, skipped=11, rejected=1" in capsys.readouterr().out
    check(corpus)


def test_ranks_of_torchrun(corpus, sources):
    """Forks with the environment that torchrun gives its processes, since starting Python anew takes long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            try:
                with (corpus / f"rank{rank}.txt").open("w") as shown, redirect_stdout(shown):
                    prepare(clips(corpus), settings(corpus, str(sources / "whisper")), {"device": "cpu"})
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert "share 1 of 1: Summary(stored=0, skipped=11, rejected=1" in (corpus / "rank0.txt").read_text()
    assert "share 1 of 1" not in (corpus / "rank1.txt").read_text()
    check(corpus)


def test_shares_are_written_from_one_to_n():
    assert parse_partition("1/1") == Partition(0, 1, finishes=False) and parse_partition("3/8") == Partition(
        2, 8, finishes=False
    )
    assert parse_partition(None) == Partition(0, 1, finishes=True)
    for wrong in ("0/8", "9/8", "3", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="I/N"):
            parse_partition(wrong)


def test_two_devices_give_what_one_gives(corpus, sources):
    """Features of a clip are those of a plain run, to the accuracy of another batch."""
    whisper = str(sources / "whisper")
    stores = []
    for name, shards in (("plain", [None]), ("shared", ["1/3", "2/3", "3/3", None])):
        for shard in shards:
            options = {"feature_folder": corpus / name, "feature_dtype": "float32", "shard": shard}
            prepare(clips(corpus), settings(corpus, whisper, **options), {"device": "cpu"})
        stores.append(FeatureStore(corpus / name))
    for key in stores[0]:
        torch.testing.assert_close(stores[1][key], stores[0][key], rtol=0, atol=1e-5)
