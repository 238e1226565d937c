"""Tests of DDP and FSDP2: two processes compute what one computes, fail together, and resume runs of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.evaluation.validation import AnswerValidation
from audiolm_lite.hub.load import load_model
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_dataset
from audiolm_lite.training.signals import Stopped
from tests.training.engines.two_processes import KEYS, curriculum_command, run, train_with
from tests.training.test_build import make_corpus

ROOT = Path(__file__).parents[3]
NAME = "audiolm_lite.training.brain.AudioLMBrain"


class StoppedAlone(AudioLMBrain):
    """Receives a signal in its third step."""

    def fit_batch(self, window):
        if self.progress.step == 2:
            self.signals.requested = "SIGTERM"
        return super().fit_batch(window)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder with the runs of two processes, some of which one process has started."""
    root = tmp_path_factory.mktemp("two")
    corpus = root / "corpus"
    corpus.mkdir()
    make_corpus(corpus)
    text = (corpus / "stage.yaml").read_text()
    (corpus / "planned.yaml").write_text(text.replace(NAME, "tests.training.engines.two_processes.PlannedForTwo"))
    (corpus / "stage_1.yaml").write_text(text + "alignment_init: {ridge: 1.0, clips: 12}\n")
    text = text.replace("stage: 1", "stage: 2").replace("adapter.projection.*", 'adapter.*", "llm.*lora_*')
    (corpus / "stage_2.yaml").write_text(text + "num_workers: 1\n")
    for name in ("ddp from one", "fsdp from one"):
        with pytest.raises(Stopped):
            run(root / name, StoppedAlone)
    stopped = launch(root)
    assert stopped.returncode != 0 and (root / "results.json").exists(), stopped.stderr[-5000:]
    steps = losses(root / "launcher stopped")
    second = launch(root)
    assert second.returncode == 0, second.stderr[-5000:]
    assert steps == losses(root / "launcher stopped")[:3]
    return root


def launch(root):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max_restarts", "1", str(ROOT / "tests/training/engines/two_processes.py"), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # otherwise restarted processes may call the addresses of earlier ones (github.com/pytorch/pytorch/issues/167288)
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses(folder):
    return [record["loss"] for record in records(folder)]


def records(folder):
    return [json.loads(line) for line in (folder / "stage_1" / "losses.jsonl").read_text().splitlines()]


def newest(folder):
    return sorted((folder / "stage_1" / "checkpoints").glob("step_*"))[-1]


def metrics(folder):
    return json.loads((newest(folder) / "checkpoint.json").read_text())["metrics"]


def weights(folder):
    return load_file(newest(folder) / "trained.safetensors")


def assert_close(first, second):
    assert losses(first) == pytest.approx(losses(second), rel=1e-5)
    assert metrics(first) == pytest.approx(metrics(second), rel=1e-5)


def test_both_engines_compute_the_same(root):
    assert_close(root / "ddp", root / "fsdp")
    assert all(record["samples"] >= 2 for record in records(root / "ddp"))
    assert sum(record["samples"] for record in records(root / "ddp")) == 2 * 20


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_continues_a_run_of_two(root, parallel):
    """With the losses of two processes, since the windows are those of two."""
    folder = root / f"{parallel} stopped"
    assert len(losses(folder)) == 3
    run(folder)
    assert_close(folder, root / parallel)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_continue_a_run_of_one(root, parallel, tmp_path):
    """Windows contain a single batch, so that one of the two processes has nothing to compute."""
    run(tmp_path)
    assert_close(root / f"{parallel} from one", tmp_path)


def test_an_interrupted_run_of_two_ends_bit_for_bit_the_same(root):
    assert losses(root / "halves") == losses(root / "uninterrupted")
    halves, expected = weights(root / "halves"), weights(root / "uninterrupted")
    assert halves.keys() == expected.keys() and all((halves[name] == expected[name]).all() for name in expected)


def test_a_run_whose_launcher_is_stopped_saves_and_continues(root):
    """SIGTERM is sent to torchrun only; the fixture runs the same command a second time."""
    assert losses(root / "launcher stopped") == losses(root / "uninterrupted")
    stopped, expected = weights(root / "launcher stopped"), weights(root / "uninterrupted")
    assert all((stopped[name] == expected[name]).all() for name in expected)


def test_the_launcher_restarts_all_processes_if_one_is_killed(root):
    assert losses(root / "killed") == losses(root / "uninterrupted")
    killed, expected = weights(root / "killed"), weights(root / "uninterrupted")
    assert all((killed[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("name", KEYS)
def test_two_compute_what_one_does(root, name, tmp_path):
    train_with(root, name, tmp_path)
    one, two = ((folder / name / "losses.jsonl").read_text().splitlines() for folder in (tmp_path, root))
    one, two = ([json.loads(line)["loss"] for line in lines] for lines in (one, two))
    assert one == pytest.approx(two, rel=1e-5) and len(one) > 4
    one, two = (load_file(folder / name / "trained.safetensors") for folder in (tmp_path, root))
    for tensor, other in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5)


def test_only_the_first_process_needs_weights(root):
    assert_close(root / "meta", root / "tied")


def test_a_curriculum_by_the_command_line_writes_unsharded_models(root):
    before, after = (load_model(root / "curriculum" / f"stage_{stage}").model.state_dict() for stage in (1, 2))
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("adapter.")}
    trained = load_file(root / "curriculum" / "stage_2" / "trained.safetensors")
    assert sum("lora_B" in name for name in trained) == 2 and all(tensor.any() for tensor in trained.values())
    log = (root / "curriculum" / "stage_2" / "log.txt").read_text()
    assert log.count("Best checkpoint") == 1  # only the first process writes


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_answer_as_one_does(root, stage):
    """In two stages the model is split across processes, in one the items are."""
    bundle = load_model(root / "curriculum" / f"stage_{stage}")
    hparams, _, _ = load_experiment(curriculum_command(root))
    valid = build_dataset(hparams, "valid", bundle.model, bundle.tokenizer)
    scores, samples = AnswerValidation(bundle.model, valid, hparams, sharded=False).run(lambda: None)
    assert len(samples) == 4 and any(sample.answer for sample in samples)
    results = json.loads((root / "curriculum" / f"stage_{stage}" / "finished.json").read_text())["metrics"]
    assert {name: results[name] for name in ("sound_class/wer", "sound_class/cer")} == scores


def test_an_item_that_one_process_cannot_read_ends_both(root):
    results = dict(json.loads((root / "results.json").read_text())["unreadable"])
    assert results.keys() == {"ValueError", "PeerError"}
    assert "failed, so all stop: ValueError: item-7 cannot be read" in results["PeerError"]


def test_audio_that_one_process_cannot_read_is_set_aside_by_both(root):
    results = json.loads((root / "results.json").read_text())
    names = sorted(f"item-{index}" for index in range(5, 13))
    assert results["damaged"] == [[8, names]] * 2
    first, second = results["too many damaged"]
    assert first == second and "8 audio files cannot be read, more than max_bad_audio 7" in first
    assert sum(record["samples"] for record in records(root / "damaged") if record["epoch"] == 1) == 12


def test_steps_exchange_numbers_and_no_pickles(root):
    steps, exchanges = json.loads((root / "results.json").read_text())["pickles"]
    assert steps >= 3 and exchanges == 0


def test_a_bad_step_of_one_process_is_skipped_by_both(root):
    (first, message), second = json.loads((root / "results.json").read_text())["nonfinite"]
    assert first == "NonFiniteError" and second == [first, message]
    assert any(f"item-{index}" in message for index in (3, 4, 5))


def test_too_few_items_are_an_error_in_both(root):
    results = json.loads((root / "results.json").read_text())["few"]
    assert [kind for kind, _ in results] == ["ValueError"] * 2
