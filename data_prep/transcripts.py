"""Add Whisper's transcript to every row of a manifest, for prompts that contain one (LTU-AS).

The template refers to it as {transcript}. The transcripts are those of an encoder's own decoder (--encoder), which
AudioLM puts into prompts, or of openai-whisper (--model). A word error rate measured with the transcript in the prompt
is mostly that of Whisper: also report the one without it, on the manifest without transcripts or one written with
--blank. The controls of an evaluation exchange the field transcript with the audio, and no other.

A model that is to answer with and without transcripts is trained on both: the manifest without them, and a second one
with a part of its rows (--share, --tasks).

After an interruption, the same command continues. Clips that cannot be read are listed in OUTPUT.rejected.jsonl with
the reason, and their rows are left out; the exit status is then 3.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ruamel.yaml
import torch
from torch import Tensor
from tqdm import tqdm

from audiolm_lite.audio.reading import SAMPLE_RATE, AudioError, read_audio
from audiolm_lite.config.errors import ConfigError, UserError, run_command
from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import audio_path, read_manifest, write_manifest
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.storage.atomic import write_text

# Waveforms [S] of clips -> their transcripts; ValueError for a clip that is too short or too long.
Recognizer = Callable[[Sequence[Tensor]], list[str]]


def main(argv: Sequence[str]) -> int:
    """Run `MANIFEST OUTPUT ...`; returns 3 if clips were rejected, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="audiolm-lite transcripts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "manifest", metavar="MANIFEST", type=Path, help="JSON lines; audio paths are relative to its folder"
    )
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="the same rows with the new field, in the same folder"
    )
    parser.add_argument("--encoder", type=Path, help="YAML file of a whisper encoder with decoder_language")
    parser.add_argument("--model", default="large-v3", help="name or .pt file of openai-whisper; default: %(default)s")
    parser.add_argument(
        "--language",
        help="code such as en or ko; default: decoder_language of the encoder; openai-whisper detects it for each clip",
    )
    parser.add_argument("--field", default="transcript", help="name of the field; default: %(default)s")
    parser.add_argument("--blank", action="store_true", help="write empty texts instead of transcripts")
    parser.add_argument("--share", type=float, default=1.0, help="write the rows of this share of the clips, e.g. 0.3")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="write the rows of these tasks; default: all")
    parser.add_argument("--seed", type=int, default=0, help="which clips are in that share; default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="clips per pass of --encoder; default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda:0, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)
    if options.output.resolve().parent != options.manifest.resolve().parent:
        parser.error("OUTPUT must be in the manifest's folder, because audio paths are relative to it")
    if not 0 < options.share <= 1:
        parser.error("--share must be above 0 and at most 1")
    if options.batch_size < 1:
        parser.error("--batch_size must be at least 1")

    every_row = read_manifest(options.manifest)
    of_tasks = [row for row in every_row if options.tasks is None or row["task"] in options.tasks]
    if unknown := set(options.tasks or []) - {row["task"] for row in of_tasks}:
        parser.error(f"--tasks: no row has the task {min(unknown)!r}; {options.manifest} has {_tasks(every_row)}")
    rows = [row for row in of_tasks if is_chosen(feature_key(row), options.share, options.seed)]
    if not rows:
        parser.error(f"--share {options.share:g} chooses none of the {len(of_tasks)} rows; raise it")
    clips = {feature_key(clip): clip for row in rows for clip in clips_of(row)}
    if options.blank:
        done = {key: {"text": ""} for key in clips}
    else:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if options.encoder is None:
            settings = {"model": options.model, "language": options.language}
            load, size = lambda: _openai_whisper(**settings, device=device), 1
        else:
            block = _encoder_block(options.encoder, options.language)
            settings = {"encoder": block}
            load, size = lambda: _own_decoder(block, device), options.batch_size
        done = transcribe(clips, options.manifest, _journal(options.output), settings, load, size)
    return _write(rows, clips, done, options)


def _tasks(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({row["task"] for row in rows}))


def is_chosen(key: str, share: float, seed: int) -> bool:
    """Whether a clip is in a share of all clips, by a hash of its key: a larger share contains a smaller one.

    Examples
    --------
    >>> [sum(is_chosen(f"{clip}.wav", share, seed=0) for clip in range(1000)) for share in (0.3, 1)]
    [294, 1000]
    """
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def transcribe(
    clips: Mapping[str, Mapping[str, Any]],
    manifest: Path,
    journal: Path,
    settings: Mapping[str, Any],
    load: Callable[[], Recognizer],
    batch_size: int,
) -> dict[str, dict[str, str]]:
    """Transcribe clips; a journal stores the progress.

    Parameters
    ----------
    clips : mapping
        Key -> clip {audio, start, duration}.
    manifest : Path
        Its folder is the one that audio paths are relative to.
    journal : Path
        Transcripts of an interrupted run with the same settings are taken from this file.
    settings : mapping
        What the transcripts depend on, as JSON values.
    load : callable
        Loads the recogniser; not called if the journal has everything.
    batch_size : int
        Clips that the recogniser receives at once.

    Returns
    -------
    dict
        Key of a clip -> {"text": ...}, or {"reason": ...} if it cannot be transcribed.
    """
    done = _completed(journal, settings)
    # A pass lasts as long as its longest transcript, so clips of about equal durations are transcribed together.
    todo = sorted((key for key in clips if key not in done), key=lambda key: clips[key]["duration"] or 0.0)
    if not todo:
        return done
    recognize = load()
    with journal.open("a", encoding="utf-8") as file, tqdm(total=len(todo), desc="transcripts", unit="clip") as bar:
        if not done:
            file.write(json.dumps(settings) + "\n")
        seconds, keys = 0.0, iter(todo)
        while batch := list(islice(keys, batch_size)):
            audio, entries = {}, {}
            for key in batch:
                try:
                    clip = clips[key]
                    path, channel = audio_path(manifest, clip), clip.get("channel")
                    audio[key] = read_audio(path, clip["start"], clip["duration"], channel=channel)
                except AudioError as error:
                    entries[key] = {"reason": str(error)}
            entries |= _texts(recognize, audio)
            for key in batch:
                file.write(json.dumps({"key": key, **entries[key]}, ensure_ascii=False) + "\n")
            file.flush()
            done |= entries
            seconds += sum(map(len, audio.values())) / SAMPLE_RATE
            bar.set_postfix_str(f"{seconds / (bar.format_dict['elapsed'] or 1e-9):.3g} times real time", refresh=False)
            bar.update(len(batch))
    return done


def _texts(recognize: Recognizer, audio: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Transcripts of a batch; clips that the recogniser refuses get the reason."""
    if not audio:
        return {}
    try:
        return {key: {"text": text.strip()} for key, text in zip(audio, recognize(list(audio.values())))}
    except ValueError as error:
        if isinstance(error, UserError):  # not about a clip
            raise
        if len(audio) == 1:
            return {key: {"reason": str(error)} for key in audio}
    texts: dict[str, dict[str, str]] = {}
    for key, waveform in audio.items():
        texts |= _texts(recognize, {key: waveform})
    return texts


def _encoder_block(file: Path, language: str | None) -> dict[str, Any]:
    """Block of an encoder from its YAML file, with the language of the command line."""
    try:
        block = ruamel.yaml.YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ruamel.yaml.error.YAMLError) as error:
        raise ConfigError(f"{file}: not a YAML file that can be read: {error}") from error
    if not isinstance(block, dict) or block.get("type") != "whisper":
        raise ConfigError(f"{file}: --encoder needs a mapping with type: whisper, such as hparams/encoders has")
    return block if language is None else {**block, "decoder_language": language}


def _own_decoder(block: dict[str, Any], device: str) -> Recognizer:
    """Whisper's own decoder, as `AudioLM` uses it."""
    if block.get("decoder_language") is None:
        raise ConfigError("encoder: transcripts need decoder_language in the block, or --language")
    encoder: Any = build("encoders", block).to(device).eval()

    @torch.no_grad()
    def recognize(waveforms: Sequence[Tensor]) -> list[str]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        encoder.num_frames(lengths)
        padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        return encoder.recognize(padded.to(device), lengths.to(device))[2]

    return recognize


def _openai_whisper(model: str, language: str | None, device: str) -> Recognizer:
    """Greedy search of openai-whisper, one clip at a time."""
    import whisper  # slow to import

    recognizer = whisper.load_model(model, device=device)
    settings = {"language": language, "temperature": 0.0, "fp16": recognizer.device.type != "cpu"}
    return lambda waveforms: [recognizer.transcribe(wave.numpy(), **settings)["text"] for wave in waveforms]


def _write(
    rows: Sequence[dict[str, Any]],
    clips: Mapping[str, Any],
    done: Mapping[str, Mapping[str, str]],
    options: argparse.Namespace,
) -> int:
    """Write the manifest and the rejected clips; a row of several clips has their texts, joined by spaces."""
    rejected = [{"key": key, "reason": done[key]["reason"]} for key in clips if "reason" in done[key]]
    kept = list(_rows_with_text(rows, done, options.field))
    if not kept:
        raise AudioError(f"{options.manifest}: no clip could be transcribed. The first: {rejected[0]['reason']}")
    write_manifest(options.output, kept)
    rejects_file = Path(f"{options.output}.rejected.jsonl")
    rejects_file.unlink(missing_ok=True)
    if rejected:
        write_text(rejects_file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected))
    _journal(options.output).unlink(missing_ok=True)
    print(f"{options.output}: {len(kept)} of {len(rows)} rows, {len(rejected)} clips rejected")
    return 3 if rejected else 0


def _rows_with_text(
    rows: Sequence[dict[str, Any]], done: Mapping[str, Mapping[str, str]], field: str
) -> Iterator[dict[str, Any]]:
    for row in rows:
        entries = [done[feature_key(clip)] for clip in clips_of(row)]
        if all("text" in entry for entry in entries):
            yield {**row, field: " ".join(entry["text"] for entry in entries if entry["text"])}


def _journal(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _completed(journal: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Clips of an interrupted run with the same settings; an incomplete last line is removed."""
    if not journal.exists():
        return {}
    text = journal.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    if not lines or json.loads(lines[0]) != settings:
        journal.unlink()
        return {}
    write_text(journal, "".join(f"{line}\n" for line in lines))
    return {entry.pop("key"): entry for entry in map(json.loads, lines[1:])}


if __name__ == "__main__":
    run_command(main)
