"""The `audiolm-lite` command: one sub-command per job. Each imports only what it needs."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from audiolm_lite import __version__
from audiolm_lite.config.errors import UserError, did_you_mean, run_command


class Job(NamedTuple):
    """A sub-command.

    Attributes
    ----------
    module : str
        Module whose `main(argv)` runs it.
    help : str
        One line for `--help`.
    """

    module: str
    help: str


JOBS = {
    "A trained model": {
        "transcribe": Job("audiolm_lite.answering.transcribe", "speech in audio files: transcribe FILE ..."),
        "describe": Job("audiolm_lite.answering.describe", "sounds in audio files: describe FILE ..."),
        "ask": Job("audiolm_lite.answering.ask", "a question about audio files: ask QUESTION FILE ..."),
    },
    "A recipe": {
        "prepare": Job("data_prep.run", "manifests and features of a corpus: prepare hparams/prepare.yaml"),
        "train": Job("audiolm_lite.training.run", "one stage or several: train hparams/stage_1.yaml --stages 1-3"),
        "evaluate": Job("audiolm_lite.evaluation.run", "answers, scores and report: evaluate hparams/evaluate.yaml"),
        "latency": Job("audiolm_lite.deploy.run", "time to first token, time per token: latency hparams/evaluate.yaml"),
        "plan": Job("audiolm_lite.plan.run", "memory of a training step, before any weight is downloaded"),
    },
    "Models and checkpoints": {
        "convert": Job("audiolm_lite.convert.run", "published checkpoints to model folders; export of LoRA and LLM"),
        "release": Job("audiolm_lite.sharing.release", "a finished stage to a model that the package contains"),
        "fetch": Job("audiolm_lite.backbones.fetch", "pretrained models that are known by name, for use offline"),
        "unshard": Job("audiolm_lite.training.engines.unshard", "DeepSpeed checkpoints to ordinary ones"),
    },
    "Data": {
        "manifest": Job("data_prep.convert", "manifests of other toolkits to this one's, and back"),
        "transcripts": Job("data_prep.transcripts", "transcripts of Whisper as a field of a manifest"),
        "open-asr": Job(
            "audiolm_lite.evaluation.open_asr", "an evaluation as a result file of the Open ASR Leaderboard"
        ),
        "text": Job("data_prep.text.__main__", "text normalisation of a manifest or a text file"),
        "stats": Job("data_prep.stats", "hours, lengths, labels and faults of manifests"),
        "tar": Job("data_prep.tar", "audio of a manifest into tar shards"),
        "verify": Job("audiolm_lite.features.verify", "damaged shards of a feature store"),
    },
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `audiolm-lite JOB ...` and exit.

    Exit status: 0 done; 1 an error that the message explains; 2 wrong options; 3 done, but some input was set aside
    (see the rejects file); 75 stopped by a signal after saving, the same command continues.

    Parameters
    ----------
    argv : sequence of str, optional
        Job and its arguments; by default those of this process.

    Examples
    --------
    >>> main(["trian"])
    Traceback (most recent call last):
    SystemExit: error: unknown job 'trian'; did you mean 'train'? Known: transcribe, ...
    """
    run_command(_run, argv)


def _run(argv: list[str]) -> object:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"audiolm-lite {__version__}")
        return 0
    jobs = {name: job for group in JOBS.values() for name, job in group.items()}
    name, *arguments = argv
    if name not in jobs:
        raise UserError(f"unknown job {name!r}{did_you_mean(name, jobs)}")
    if name not in JOBS["A recipe"]:  # of these jobs, --debug is not an option; `run_command` has seen it
        arguments = [word for word in arguments if word != "--debug"]
    sys.argv = [f"audiolm-lite {name}", *arguments]  # argparse takes the name of the program from here
    return importlib.import_module(jobs[name].module).main(arguments)


def help_text() -> str:
    """Describe the command and its jobs.

    Examples
    --------
    >>> help_text().splitlines()[0]
    'usage: audiolm-lite JOB [arguments]'
    """
    lines = ["usage: audiolm-lite JOB [arguments]", "       audiolm-lite JOB --help", "       audiolm-lite --version"]
    for group, jobs in JOBS.items():
        lines += ["", f"{group}:", *(f"  {name:<12} {job.help}" for name, job in jobs.items())]
    lines += ["", "--debug or AUDIOLM_LITE_DEBUG=1: an error is printed with its traceback."]
    lines += ["Exit status: 0 done, 1 error, 2 wrong options, 3 done with rejects, 75 stopped and saved."]
    return "\n".join(lines)
