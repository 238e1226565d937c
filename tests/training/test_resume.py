"""Tests of resume: after a kill at any moment, and after a signal, upon which a run saves a checkpoint."""

import multiprocessing
import os
import random
import signal

import pytest

from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.signals import STOPPED, Stopped, StopSignals
from tests.training import kills
from tests.training.toy import ToyData, assert_same_weights, losses_of, make_brain, outcome, train


def test_a_run_killed_at_any_moment_ends_the_same(tmp_path):
    """Each named moment once and ten others, drawn from all calls of the interpreter between two steps.

    Moments are counted in calls and not in seconds, so that each kill happens on any machine.
    """
    rng = random.Random(0)
    events = kills.events_of_steps(tmp_path / "uninterrupted")
    epoch = len(events) // kills.EPOCHS
    ends = [epoch * number - 1 for number in range(1, kills.EPOCHS + 1)]
    steps = rng.sample([step for step in range(4, len(events) - 3) if step not in ends], len(kills.STEP) + 10)
    moments = [*kills.STEP, *[""] * 10]
    plan = [(step, moment, rng.randrange(1, int(0.9 * events[step]))) for step, moment in zip(steps, moments)]
    plan += [(step, moment, 0) for step, moment in zip(ends, kills.VALIDATION)]
    assert len(plan) == 27
    # forked from a process that has imported everything and computed nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", kills.__name__])
    for kill in [*sorted(plan), ()]:
        process = context.Process(target=kills.train_until, args=(tmp_path / "killed", *kill))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill else 0), kill
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "uninterrupted")


class Signalled(AudioLMBrain):
    """Receives a signal in its fourth step, or in its first validation."""

    number, moment = signal.SIGTERM, "step"

    def fit_batch(self, window):
        if self.moment == "step" and self.progress.step == 3:
            os.kill(os.getpid(), self.number)
        return super().fit_batch(window)

    def validate(self, dataset):
        if self.moment == "validation":
            os.kill(os.getpid(), self.number)
        return super().validate(dataset)


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_signal_saves_and_ends_the_run(tmp_path, monkeypatch, number, moment):
    monkeypatch.setattr(Signalled, "number", number)
    monkeypatch.setattr(Signalled, "moment", moment)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "stopped", kind=Signalled, ckpt_interval_minutes=0.0)
    assert stopped.value.code == STOPPED == 75
    assert signal.getsignal(number) is before
    steps = len(losses_of(make_brain(tmp_path / "stopped")))
    assert steps == (4 if moment == "step" else 3)
    brain = train(tmp_path / "stopped")
    expected = train(tmp_path / "uninterrupted")
    assert_same_weights(expected.model, brain.model)
    assert losses_of(expected) == losses_of(brain)


def test_the_best_checkpoint_is_kept_by_any_metric(tmp_path):
    class Scored(AudioLMBrain):
        def validate(self, dataset):
            return {**super().validate(dataset), "cider_d": -abs(self.progress.epoch - 2)}

    brain = train(tmp_path, kind=Scored, epochs=3, valid_metric="max:cider_d", grad_accumulation_factor=8)
    assert brain.summary["metrics"]["cider_d"] == 0 and len(losses_of(brain)) > brain.summary["step"]
    with pytest.raises(ValueError, match="validation computes loss, accuracy, and not wer"):
        make_brain(tmp_path / "other", valid_metric="min:wer").fit_stage(ToyData(4), ToyData(2))
