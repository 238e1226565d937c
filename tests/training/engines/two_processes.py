"""Runs on two processes, which test_sharding.py starts with torchrun and whose results it compares.

torchrun --nproc_per_node 2 --max_restarts 1 tests/training/engines/two_processes.py FOLDER

In one of the runs the launcher is stopped, as by a cluster. The same command continues that run. Then it trains another
one whose second process is killed, so that the launcher restarts both.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import init_empty_weights

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.distributed import processes
from audiolm_lite.training.bad_audio import BadAudioError
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.signals import Stopped
from audiolm_lite.training.stages import stage_commands
from tests.training.test_build import train
from tests.training.toy import ToyData, make_brain, make_model

PLAIN = {"grad_accumulation_factor": 1, "batch_tokens": 40, "epochs": 2, "ckpt_interval_minutes": 0.0}


class Interrupted(AudioLMBrain):
    """The second process receives a signal in the third step."""

    def fit_batch(self, window):
        if self.progress.step == 2 and processes.rank() == 1:
            self.signals.requested = "SIGUSR1"
        return super().fit_batch(window)


class LauncherStopped(AudioLMBrain):
    """The launcher receives SIGTERM in the third step and sends it to its processes, which wait for it."""

    def fit_batch(self, window):
        if self.progress.step == 2:
            if processes.rank() == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            while not self.signals.requested:
                time.sleep(0.01)
        return super().fit_batch(window)


class Killed(AudioLMBrain):
    """The second process is killed in its third step, once."""

    def fit_batch(self, window):
        if self.progress.step == 2 and processes.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit_batch(window)


class PlannedForTwo(AudioLMBrain):
    """Its windows are those of two processes, for any number of processes."""

    def _loader(self, dataset, training):
        self.state.ranks = 2
        return super()._loader(dataset, training)


class Unreadable(ToyData):
    """Item 7 cannot be read."""

    def __getitem__(self, index):
        if index == 7:
            raise ValueError("item-7 cannot be read")
        return super().__getitem__(index)


class Damaged(ToyData):
    """Items 5 to 12 have no audio that can be read; a batch may have none that can."""

    @property
    def rows(self):
        return [{**item.row, "audio": f"{index}.wav"} for index, item in enumerate(self.items)]

    def __getitem__(self, index):
        if 5 <= index <= 12:
            raise AudioError(f"{index}.wav", "damaged")
        return super().__getitem__(index)


class Pickles(AudioLMBrain):
    """Counts the exchanges of pickled objects from the first to the last step of an epoch."""

    exchanges = 0

    def fit_batch(self, window):
        if self.progress.step == 0:
            exchange = torch.distributed.all_gather_object
            self.patch = patch.object(torch.distributed, "all_gather_object", side_effect=exchange)
            self.mock = self.patch.start()
        self.exchanges = self.mock.call_count  # before the last step, so without the checkpoint at the end
        return super().fit_batch(window)

    def validate(self, dataset):
        self.patch.stop()
        return super().validate(dataset)


def damaged(root, **changes):
    """What both processes have set aside, or the errors with which they end."""
    try:
        brain = run(root, data=Damaged(20), **changes)
    except BadAudioError as error:
        return processes.gather(str(error))
    return processes.gather([brain.bad_audio.files, sorted(name for _, name in brain.bad_audio.rows)])


def run(root, kind=AudioLMBrain, model=None, data=None, **changes):
    model = model if model is not None else make_model(dropout=changes.pop("dropout", 0.0))
    torch.manual_seed(1)
    brain = make_brain(root, model, kind, **{**PLAIN, **changes})
    brain.fit_stage(data or ToyData(20), ToyData(7, seed=1))
    return brain


def stopped(root, **changes):
    try:
        run(root, Interrupted, **changes)
    except Stopped:
        return
    raise AssertionError("the run did not stop")


def failure(root, data, **changes):
    """Type and message of the error with which each process ends."""
    try:
        run(root, data=data, **changes)
    except Exception as error:
        return processes.gather([type(error).__name__, str(error)])
    return processes.gather(None)


def model_on_meta():
    """A model with weights in the first process, and on the meta device in the other one."""
    if processes.rank() == 0:
        return make_model(dropout=0.0, tied=True)
    with init_empty_weights(include_buffers=False):
        model = make_model(dropout=0.0, tied=True)
    model.llm.tie_weights()
    return model


def curriculum_command(root, file="stage.yaml"):
    """Command line of a stage; all four items of validation are answered."""
    answers = "{metrics: {sound_class: {type: asr, normaliser: none}}}"
    command = [str(root / "corpus" / file), "--output_root", str(root / "curriculum"), "--device", "cpu"]
    command += ["--valid_answers", answers, "--generation", "{max_new_tokens: 4}", "--batch_tokens", "60"]
    return [*command, "--learning_rates", '{"*": 0.05}']


def curriculum(root):
    """Train two stages by one command, in which only the first process reads the LLM, and a third in which both do."""
    command = [*curriculum_command(root, "stage_1.yaml"), "--stages", "1-2", "--parallel", "fsdp"]
    assert all(train(stage) for stage in stage_commands(command))
    assert not any(train(stage) for stage in stage_commands(command))
    train([*curriculum_command(root), "--stage", "3"])


# Options that change the batches or the loss.
KEYS = {
    "packing": ["--packing", "true"],
    "augmentation": ["--augmentation", "{}"],
    "distillation": ["--distillation", "{text: target, weight: 0.7}"],
}
if hasattr(torch.nn.functional, "linear_cross_entropy"):
    KEYS["kernel with shards"] = ["--loss_kernel", "torch", "--parallel", "fsdp"]


def train_with(root, name, folder):
    """Train on the features of the corpus with some of `KEYS` and windows for two processes."""
    command = [str(root / "corpus" / "planned.yaml"), "--output_folder", str(folder / name), "--device", "cpu"]
    command += ["--trainable", "['adapter.*', 'llm.*lora_*']", "--epochs", "2", "--batch_tokens", "60"]
    train([*command, *KEYS[name]])


def main(root):
    torch.set_num_threads(1)
    processes.start_process_group("cpu")
    if not (root / "results.json").exists():
        run_all(root)
        processes.any_rank()
    run(root / "launcher stopped", LauncherStopped, dropout=0.1)
    run(root / "killed", Killed, dropout=0.1, ckpt_interval_minutes=1e-9)  # saved after every step


def run_all(root):
    for parallel in ("ddp", "fsdp"):
        run(root / parallel, parallel=parallel)
        stopped(root / f"{parallel} stopped", parallel=parallel)
        if parallel == "ddp":  # with dropout, so that the random number generators matter
            run(root / "uninterrupted", dropout=0.1)
            stopped(root / "halves", dropout=0.1)
            run(root / "halves", dropout=0.1)
        run(root / f"{parallel} from one", parallel=parallel)  # continues a run of one process
    run(root / "tied", model=make_model(dropout=0.0, tied=True))
    run(root / "meta", model=model_on_meta(), parallel="fsdp", gradient_checkpointing=1)
    curriculum(root)
    for name in KEYS:
        train_with(root, name, root)
    results = {"unreadable": failure(root / "unreadable", Unreadable(20))}
    bad = ToyData(20)
    for index in (3, 4, 5):
        bad.items[index].features[:] = torch.nan
    results["nonfinite"] = failure(root / "nonfinite", bad, parallel="fsdp", nonfinite_patience=0)
    results["damaged"] = damaged(root / "damaged")
    results["too many damaged"] = damaged(root / "too many damaged", max_bad_audio=7)
    brain = run(root / "pickles", Pickles, epochs=1)
    results["pickles"] = [brain.progress.step, brain.exchanges]
    results["few"] = failure(root / "few", ToyData(1))
    if processes.is_main():
        (root / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
