"""What the commands transcribe, ask and describe have in common: options, loading of the model, output."""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from tqdm import tqdm

from audiolm_lite.answering.files import answer_files
from audiolm_lite.decoding.recordings import Recording

if TYPE_CHECKING:
    from audiolm_lite.api import AudioLM

SKIPPED = 3  # exit status, see `cli.main`
UNSET = object()  # an option that is not given: the model folder decides


def make_parser(name: str, description: str | None, *, transcript: bool) -> argparse.ArgumentParser:
    """Parser of a command about audio files, with the options that all of them have.

    Parameters
    ----------
    name : str
        Name of the command.
    description : str, optional
        What it does.
    transcript : bool
        Default of `--transcript`: Whisper's own transcript in the prompt. It helps where words are asked for; about
        sounds, it is one of words that nobody said.

    Examples
    --------
    >>> options = make_parser("transcribe", "Transcribe speech.", transcript=True).parse_args(["--json"])
    >>> options.model, options.json, options.transcript
    ('tiny', True, True)
    """
    parser = argparse.ArgumentParser(
        prog=f"audiolm-lite {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "released model, model folder, or owner/name on the hub (default: %(default)s)"
    parser.add_argument("--model", default="tiny", help=text)
    text = f"Whisper's own transcript in the prompt, or only the audio (default: {'with' if transcript else 'without'})"
    parser.add_argument("--transcript", action=argparse.BooleanOptionalAction, default=transcript, help=text)
    text = 'channel of the recordings, from 0; "each": all, one after the other, for example the two people of a call; '
    parser.add_argument("--channel", type=_channel, metavar="N", help=f"{text}default: the mean of all")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file, with times and transcript")
    text = "recordings, or windows of long ones, that are answered together (default: %(default)s)"
    parser.add_argument("--batch_size", type=int, default=2, metavar="N", help=text)
    text = "level of audio, relative to full scale, below which the model is not asked; none: it is always asked"
    parser.add_argument("--silence_level", type=_number, default=UNSET, metavar="DB", help=f"{text} (default: -60)")
    text = "most tokens of an answer per second of audio, besides a fixed allowance; none: no such limit"
    parser.add_argument("--tokens_per_second", type=_number, default=UNSET, metavar="N", help=f"{text} (default: 25)")
    parser.add_argument("--device", help="for example cpu, cuda:0 or mps; default: a GPU if there is one")
    return parser


def print_answers(options: argparse.Namespace, question: Callable[["AudioLM"], str], *, joined: bool) -> int:
    """Print the answers about the files of a command line, and return the exit status.

    Parameters
    ----------
    options : Namespace
        Of a parser of `make_parser`, and `files`.
    question : callable
        Gives the question to a model.
    joined : bool
        Join the answers about the windows of a long recording. Otherwise each window has its own line.
    """
    model = _load(options)
    given = {name: getattr(options, name) for name in ("silence_level", "tokens_per_second")}
    choices = {name: value for name, value in given.items() if value is not UNSET}
    choices |= {"channel": options.channel, "transcript": options.transcript}
    answers = answer_files(model, options.files, question(model), **choices)
    several, status = len(options.files) > 1 or options.channel == "each", 0
    total = None if options.channel == "each" else len(options.files)
    # None: a bar only on a terminal
    for file in tqdm(answers, total=total, unit="file", disable=None if several else True):
        if file.error is not None:
            status = SKIPPED
            tqdm.write(f"{file.audio}: {file.error}; skipped", file=sys.stderr)
            continue
        for part in file.parts:
            if part.stopped == "loop":
                where = f"{file.audio}, {part.start:.1f} s"
                tqdm.write(f"{where}: the answer repeated itself; the repeats are cut", file=sys.stderr)
        if silent := sum(part.stopped == "silence" for part in file.parts):
            text = f"{silent} of {len(file.parts)} parts below silence_level; the model was not asked about them"
            tqdm.write(f"{file.audio}: {text}", file=sys.stderr)
        for line in [json.dumps(_entries(file), ensure_ascii=False)] if options.json else _lines(file, several, joined):
            tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    return status


def _channel(text: str) -> int | str:
    """A number, or "each"."""
    return text if text == "each" else int(text)


def _number(text: str) -> float | None:
    """A number, or None for "none"."""
    return None if text.lower() in ("none", "null") else float(text)


def _load(options: argparse.Namespace) -> "AudioLM":
    """Load the model without the messages and progress bars of transformers."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    from audiolm_lite.api import AudioLM

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AudioLM.from_pretrained(options.model, options.device, batch_size=max(1, options.batch_size))


def _lines(file: Recording, named: bool, joined: bool) -> list[str]:
    name = f"{file.audio}\t" if named else ""
    if joined or len(file.parts) == 1:
        return [name + _one_line(file.text)]
    times = [f"{part.start:.1f}-{part.start + part.seconds:.1f} s" for part in file.parts]
    return [f"{name}{time}\t{_one_line(part.text)}" for time, part in zip(times, file.parts)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _entries(file: Recording) -> dict[str, object]:
    seconds = file.parts[-1].start + file.parts[-1].seconds
    return {"audio": file.audio, "text": file.text, "seconds": seconds, "parts": [asdict(part) for part in file.parts]}
