"""A process killed at random moments leaves no trace; one that is asked to stop saves, says so, and goes on later."""

import os
import random
import signal
import time

import pytest

from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.stopping import STOPPED, Stopped, StopSignals
from benchmarks.resume import run_killed
from tests.training.toy import ToyData, assert_same_weights, losses_of, make_brain, outcome, train, train_in


def test_kills_at_random_moments_leave_no_trace(tmp_path):
    run_killed(train_in, tmp_path / "whole", [])  # also starts the process that the others are forked from
    began = time.monotonic()
    run_killed(train_in, tmp_path / "timed", [])
    seconds = time.monotonic() - began
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "timed")
    rng = random.Random(0)
    kills = run_killed(train_in, tmp_path / "killed", [rng.uniform(0.05, 0.5) * seconds for _ in range(6)])
    assert kills["kills"] >= 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


class AskedToStop(AudioLMBrain):
    """Gets a signal in its fourth step, or in its first validation."""

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
    monkeypatch.setattr(AskedToStop, "number", number)
    monkeypatch.setattr(AskedToStop, "moment", moment)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "stopped", kind=AskedToStop, ckpt_interval_minutes=0.0)
    assert stopped.value.code == STOPPED == 75
    assert signal.getsignal(number) is before
    steps = len(losses_of(make_brain(tmp_path / "stopped")))
    assert steps == (4 if moment == "step" else 3)
    brain = train(tmp_path / "stopped")
    whole = train(tmp_path / "whole")
    assert_same_weights(whole.model, brain.model)
    assert losses_of(whole) == losses_of(brain)


def test_the_best_checkpoint_is_kept_by_any_metric(tmp_path):
    class Judged(AudioLMBrain):
        def validate(self, dataset):
            return {**super().validate(dataset), "cider_d": -abs(self.progress.epoch - 2)}

    brain = train(tmp_path, kind=Judged, epochs=3, valid_metric="max:cider_d", grad_accumulation_factor=8)
    assert brain.summary["metrics"]["cider_d"] == 0 and len(losses_of(brain)) > brain.summary["step"]
    with pytest.raises(ValueError, match="validation gives loss, accuracy, and no wer"):
        make_brain(tmp_path / "other", valid_metric="min:wer").fit_stage(ToyData(4), ToyData(2))
