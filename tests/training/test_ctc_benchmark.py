"""The benchmark of starts on a tiny model."""

import importlib.util
from pathlib import Path

import pytest

from audiolm_lite.data.manifest import read_manifest, write_manifest
from tests.training.test_build import make_corpus


@pytest.fixture
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks/ctc_start.py"
    spec = importlib.util.spec_from_file_location("benchmark_ctc_start", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_steps_are_counted_from_the_mean_of_ten(benchmark):
    assert benchmark.steps_to([3.0] * 10 + [1.0] * 10, 2.0) == 15
    assert benchmark.steps_to([3.0] * 10, 2.0) is None


def test_all_starts_train_the_same_stage(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hparams").mkdir()
    make_corpus(tmp_path)
    for name in ("train", "valid"):
        rows = read_manifest(tmp_path / f"{name}.jsonl")
        write_manifest(tmp_path / f"{name}.jsonl", [{**row, "task": "asr"} for row in rows])
    stage = (tmp_path / "stage.yaml").rename(tmp_path / "hparams/stage.yaml")
    flags = ["--data_folder", str(tmp_path), "--ctc", "{passes: 1}", "--losses", "0.001", "--device", "cpu"]
    result = benchmark.main([str(stage), *flags, "--epochs", "3", "--batch_tokens", "100"])
    assert [run["start"] for run in result["runs"]] == ["random", "closed form", "ctc"]
    assert len({run["steps"] for run in result["runs"]}) == 1
    assert len({run["first_loss"] for run in result["runs"]}) == 3
    assert [run["adapter_alone_wer"] is not None for run in result["runs"]] == [False, False, True]
    assert all(run["steps_to"] == {"0.001": None} for run in result["runs"])
