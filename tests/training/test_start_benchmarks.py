"""The benchmarks of starts and of adapters on a tiny model."""

import importlib.util
from pathlib import Path

import pytest

from audiolm_lite.data.manifest import read_manifest, write_manifest
from tests.training.test_build import make_corpus


def load(name):
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", Path(__file__).parents[2] / f"benchmarks/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage whose rows all have transcripts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hparams").mkdir()
    make_corpus(tmp_path)
    for name in ("train", "valid"):
        rows = read_manifest(tmp_path / f"{name}.jsonl")
        write_manifest(tmp_path / f"{name}.jsonl", [{**row, "task": "asr"} for row in rows])
    return (tmp_path / "stage.yaml").rename(tmp_path / "hparams/stage.yaml")


def test_steps_are_counted_from_the_mean_of_ten():
    benchmark = load("ctc_start")
    assert benchmark.steps_to([3.0] * 10 + [1.0] * 10, 2.0) == 15
    assert benchmark.steps_to([3.0] * 10, 2.0) is None


def test_all_starts_train_the_same_stage(stage, tmp_path):
    flags = ["--data_folder", str(tmp_path), "--ctc", "{passes: 1}", "--losses", "0.001", "--device", "cpu"]
    result = load("ctc_start").main([str(stage), *flags, "--epochs", "3", "--batch_tokens", "100"])
    assert [run["start"] for run in result["runs"]] == ["random", "closed form", "ctc"]
    assert len({run["steps"] for run in result["runs"]}) == 1
    assert len({run["first_loss"] for run in result["runs"]}) == 3
    assert [run["adapter_alone_wer"] is not None for run in result["runs"]] == [False, False, True]
    assert all(run["steps_to"] == {"0.001": None} for run in result["runs"])


def test_adapters_are_compared_after_the_same_cpu_time(stage, tmp_path, monkeypatch):
    benchmark = load("adapters")
    blocks = {"a.yaml": "{type: tltr, layer_heads: 2}", "b.yaml": "{type: stacked_transformer, stride: 1}"}
    for name, block in blocks.items():
        (tmp_path / name).write_text(block)
    clock = iter(range(0, 1000, 2))  # each start takes two seconds
    monkeypatch.setattr(benchmark.time, "process_time", lambda: next(clock))
    flags = ["--data_folder", str(tmp_path), "--minutes", "0.1", "--device", "cpu", "--batch_tokens", "100"]
    adapters = ["--adapters", str(tmp_path / "a.yaml"), f"{tmp_path / 'b.yaml'}:dim=8:heads=2:blocks=0"]
    first, second = benchmark.main([str(stage), *flags, *adapters])["runs"]
    assert first["adapter"] == "a.yaml" and second["adapter"] == "b.yaml:dim=8:heads=2:blocks=0"
    assert first["passes"] == second["passes"] == 3  # 0.1 min / 2 s
    assert first["parameters"] > second["parameters"]
    assert first["steps"] == 3 and first["clips"] == 12  # a batch per pass
    assert first["loss"] != second["loss"] and first["adapter_alone"]["utterances"] == 4
