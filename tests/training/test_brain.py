"""Tests of the training loop: exact accumulation, skipped steps, exact resume, consecutive stages."""

import copy
import json
import logging
import math
import os
import shutil

import pytest
import torch

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import collate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.training import handover
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.optimizer_step import NonFiniteError
from tests.training.toy import (
    HIDDEN,
    LAYERS,
    ToyData,
    assert_same_weights,
    losses_of,
    make_brain,
    make_hparams,
    make_model,
    train,
)


class InterruptedBrain(AudioLMBrain):
    """Raises KeyboardInterrupt before optimiser step number `interrupted_at`."""

    interrupted_at = 0

    def fit_batch(self, window):
        if self.progress.step == self.interrupted_at:
            raise KeyboardInterrupt
        return super().fit_batch(window)


class InterruptedInValidation(AudioLMBrain):
    """Raises KeyboardInterrupt in its first validation."""

    def validate(self, dataset):
        raise KeyboardInterrupt


# --- one step -------------------------------------------------------------------------------------------------------


def test_a_window_of_batches_equals_one_batch(tmp_path):
    """Accumulation is exact although the batches have different numbers of answer tokens."""
    data = ToyData(7)
    windows = {"one": [data.items], "three": [data.items[:1], data.items[1:5], data.items[5:]]}
    models = {}
    for name, batches in windows.items():
        brain = make_brain(tmp_path / name, make_model(dropout=0.0))
        brain.total_steps = 10
        models[name] = brain.model
        record = brain.fit_batch([collate(items) for items in batches])
        assert record["tokens"] == sum(label != -100 for item in data.items for label in item.labels)
    # Adam divides by the gradient's size, so that only exact weights result in nearly equal parameters
    for first, second in zip(models["one"].parameters(), models["three"].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=2e-4)


def test_the_last_incomplete_window_is_used(tmp_path):
    brain = train(tmp_path, grad_accumulation_factor=3, epochs=1)
    windows = brain._loader(ToyData(20), training=True).windows(1)
    assert 0 < len(windows[-1]) < 3, "the test needs an incomplete window"
    records = losses_of(brain)
    assert len(records) == len(windows)
    assert sum(record["samples"] for record in records) == 20


def test_all_groups_are_clipped_together(tmp_path):
    brain = make_brain(tmp_path, max_grad_norm=1e-3)
    clipped = {}
    brain.optimizer.step = lambda *_, **__: clipped.update({n: p.grad.clone() for n, p in brain.trained.items()})
    brain.total_steps = 10
    record = brain.fit_batch([collate(ToyData(4).items)])
    norm = torch.stack([grad.norm() for grad in clipped.values()]).norm().item()
    assert len(brain.optimizer.param_groups) == 3  # adapter matrices, adapter vectors, LoRA
    assert record["grad_norm"] > 1e-2 and norm == pytest.approx(1e-3, rel=1e-3)


def test_learning_rates_follow_the_schedule(tmp_path):
    rates = [record["lr"] for record in losses_of(train(tmp_path))]
    rest = len(rates) - 2
    expected = [0.5e-2, 1e-2] + [1e-2 * (1 - done / rest) for done in range(rest)]
    assert rates == pytest.approx(expected)


def test_a_nonfinite_step_is_skipped_and_its_items_are_logged(tmp_path, caplog):
    brain = make_brain(tmp_path)
    brain.total_steps = 10
    before = copy.deepcopy(brain.model.state_dict())
    good, bad = ToyData(2).items, copy.deepcopy(ToyData(3, seed=5).items)
    for number, item in enumerate(bad):
        item.row["id"] = f"bad-{number}"
        item.features[:] = math.nan
    with caplog.at_level(logging.WARNING):
        brain.fit_batch([collate(good), collate(bad)])
    assert brain.progress.skipped == 1 and brain.progress.step == 1
    assert "bad-0, bad-1, bad-2" in caplog.text and "item-0" not in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in brain.model.state_dict().items())
    assert not brain.optimizer.state
    assert math.isfinite(brain.fit_batch([collate(good)])["loss"])
    brain.fit_batch([collate(bad)])
    brain.fit_batch([collate(bad)])
    with pytest.raises(NonFiniteError, match="4 in epoch 1.*bad-0"):
        brain.fit_batch([collate(bad)])


# --- a run ----------------------------------------------------------------------------------------------------------


def test_training_reduces_the_loss_and_keeps_the_best_checkpoint(tmp_path):
    brain = train(tmp_path, epochs=6)
    records = losses_of(brain)
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    log = (brain.folder / "train_log.txt").read_text().splitlines()
    assert len(log) == 6 and "epoch: 6" in log[-1] and "train loss" in log[-1] and "valid accuracy" in log[-1]
    infos = [json.loads(p.read_text()) for p in brain.state.checkpoints.folder.glob("step_*/checkpoint.json")]
    assert max(info["step"] for info in infos) == len(records)
    best = brain.validate(ToyData(6, seed=1))
    assert best["loss"] == pytest.approx(brain.summary["metrics"]["loss"], rel=1e-6)
    assert best["loss"] == pytest.approx(
        min(float(line.split("valid loss: ")[1].split(",")[0]) for line in log), rel=2e-3
    )


def test_bf16_autocast_trains_float32_parameters(tmp_path):
    brain = train(tmp_path, precision="bf16")
    records = losses_of(brain)
    assert records[-1]["loss"] < records[0]["loss"]
    assert {parameter.dtype for parameter in brain.trained.values()} == {torch.float32}


def test_checkpoints_contain_trainable_tensors_only(tmp_path):
    brain = train(tmp_path, epochs=1)
    checkpoint = brain.state.checkpoints.newest()
    assert set(checkpoint.tensors) == set(brain.trained)
    assert not any("embed_tokens" in name for name in checkpoint.tensors)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_interrupted_repeatedly_ends_bit_for_bit_the_same(tmp_path, accumulation):
    changes = {"grad_accumulation_factor": accumulation}
    expected = train(tmp_path / "uninterrupted", **changes)
    steps = len(losses_of(expected))
    for interrupted_at in (1, steps // 2 - 1, steps // 2, steps - 1):
        InterruptedBrain.interrupted_at = interrupted_at
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "interrupted", kind=InterruptedBrain, **changes)
    resumed = train(tmp_path / "interrupted", **changes)
    assert_same_weights(expected.model, resumed.model)
    assert losses_of(expected) == losses_of(resumed)
    assert expected.summary["metrics"] == resumed.summary["metrics"]


def test_a_run_interrupted_in_validation_or_between_checkpoints_ends_the_same(tmp_path):
    expected = train(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", kind=InterruptedInValidation, ckpt_interval_minutes=0.0)
    assert losses_of(make_brain(tmp_path / "interrupted"))  # of steps after the newest checkpoint
    resumed = train(tmp_path / "interrupted")
    assert_same_weights(expected.model, resumed.model)
    assert losses_of(expected) == losses_of(resumed)


def test_a_damaged_newest_checkpoint_is_logged_and_the_previous_one_used(tmp_path, caplog):
    expected = train(tmp_path / "uninterrupted")
    InterruptedBrain.interrupted_at = 4
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", kind=InterruptedBrain)
    folder = tmp_path / "interrupted" / "stage_1" / "checkpoints"
    newest = sorted(folder.glob("step_*"))[-1]
    with open(newest / "trained.safetensors", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")
    (folder / ".step_00000009.1234.tmp").mkdir()  # left by a save that was killed
    (folder / ".removing-step_00000001").mkdir()
    with caplog.at_level(logging.INFO):
        resumed = train(tmp_path / "interrupted")
    assert f"{newest} is damaged" in caplog.text and "Continuing from step 3" in caplog.text
    assert not list(folder.glob(".*"))
    assert_same_weights(expected.model, resumed.model)


def test_float16_on_the_cpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU"):
        make_brain(tmp_path, precision="fp16")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_is_stored_as_what_it_means_here(native, precision, tmp_path, monkeypatch):
    """Otherwise a run could continue in another precision on another machine without notice."""
    monkeypatch.setattr("audiolm_lite.config.precision.multiplies_bf16", lambda device: native)
    brain = make_brain(tmp_path, precision="auto")
    assert brain.experiment["precision"] == brain.precision == precision


def test_a_run_cannot_continue_with_other_settings(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(ConfigError, match="epochs was 1, is now 3"):
        train(tmp_path, epochs=3)


# --- consecutive stages ---------------------------------------------------------------------------------------------

STAGES = {
    1: ["adapter.projection.*"],
    2: ["adapter.*", "llm.*lora_*"],
    3: ["llm.*lora_*"],
}


def run_stage(root, stage, **changes):
    patterns = STAGES[stage]
    brain = make_brain(root, stage=stage, trainable=patterns, learning_rates=dict.fromkeys(patterns, 1e-2), **changes)
    brain.load_previous_stage()
    start = copy.deepcopy(brain.model.state_dict())
    brain.fit_stage(ToyData(12), ToyData(6, seed=1))
    handover.save_stage(brain.model, brain.experiment, brain.run_opts, brain.inherited, brain.summary)
    return brain, start


def test_exactly_the_named_parameters_change_in_each_stage(tmp_path):
    before = None
    for stage, expected in {
        1: lambda name: name.startswith("adapter.projection."),
        2: lambda name: name.startswith("adapter.") or ".lora_" in name,
        3: lambda name: ".lora_" in name,
    }.items():
        brain, start = run_stage(tmp_path, stage, epochs=2)
        for name, tensor in brain.model.state_dict().items():
            assert torch.equal(tensor, start[name]) != expected(name), f"stage {stage}: {name}"
            if before is not None:
                assert torch.equal(start[name], before[name]), (
                    f"stage {stage} did not start with {name} of the previous stage"
                )
        before = copy.deepcopy(brain.model.state_dict())


def test_a_stage_needs_the_previous_one(tmp_path):
    with pytest.raises(ConfigError, match=rf"python train.py hparams/stage_1.yaml --output_root {tmp_path}"):
        run_stage(tmp_path, 2)
    run_stage(tmp_path, 1, epochs=1)
    with pytest.raises(
        ConfigError, match="adapter is .*tltr.* in the previous stage and .*other.* in this one.*stage_1.yaml"
    ):
        run_stage(tmp_path, 2, adapter={"type": "other"})
    wide = AudioLanguageModel(TLTR(feature_dim=16, num_layers=LAYERS, llm_dim=HIDDEN, layer_heads=2), make_model().llm)
    with pytest.raises(ConfigError, match=r"contains adapter\..* of shape"):
        run_stage(tmp_path, 2, model=wide)


def test_a_finished_stage_is_recognised_unless_something_changed(tmp_path, caplog):
    hparams = make_hparams(tmp_path, stage=1, trainable=STAGES[1], learning_rates={STAGES[1][0]: 1e-2}, epochs=1)
    assert not handover.is_finished(hparams, {})
    run_stage(tmp_path, 1, epochs=1)
    with caplog.at_level(logging.INFO):
        assert handover.is_finished(hparams, {"device": "cpu"})
    assert "is finished" in caplog.text
    with pytest.raises(ConfigError, match="epochs was 1, is now 2"):
        handover.is_finished(hparams | {"epochs": 2}, {})
    with pytest.raises(ConfigError, match="debug was False, is now True"):
        handover.is_finished(hparams, {"debug": True})

    second = {"trainable": STAGES[2], "learning_rates": dict.fromkeys(STAGES[2], 1e-2), "epochs": 1, "stage": 2}
    run_stage(tmp_path, 2, epochs=1)
    assert handover.is_finished(make_hparams(tmp_path, **second), {})
    shutil.rmtree(tmp_path / "stage_1")
    run_stage(tmp_path, 1, epochs=1, seed=3)
    with pytest.raises(ConfigError, match="stage_1 was trained again since"):
        handover.is_finished(make_hparams(tmp_path, **second), {})


def test_a_warm_up_longer_than_the_run_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r"warmup_steps is 99, and the run has only \d+ .*, a tenth of the run"):
        train(tmp_path / "long", warmup_steps=99)
    rates = {"adapter.*": {"lr": 1e-2, "warmup_steps": 98}, "llm.*": 1e-2}
    with pytest.raises(ConfigError, match="warmup_steps is 98"):
        train(tmp_path / "own", learning_rates=rates)
    assert not list(tmp_path.rglob("losses.jsonl"))
    brain = make_brain(tmp_path / "debug", warmup_steps=99)
    brain.debug = True
    brain.fit_stage(ToyData(20), ToyData(6, seed=1))
    assert len(losses_of(brain)) > 0
