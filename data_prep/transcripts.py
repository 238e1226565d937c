"""Add Whisper's transcript to every row of a manifest, for prompts that contain one (LTU-AS).

The template refers to it as {transcript}. A word error rate measured with the transcript in the prompt is mostly that
of Whisper: also report the one without it, on a manifest written with --blank.

After an interruption, the same command continues. Clips that cannot be read are listed in OUTPUT.rejected.jsonl with
the reason, and their rows are left out; the exit status is then 3.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.config.errors import run_command
from audiolm_lite.data.manifest import audio_path, read_manifest, write_manifest
from audiolm_lite.features.keys import feature_key
from audiolm_lite.storage.atomic import write_text


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
    parser.add_argument("--model", default="large-v3", help="name or .pt file of openai-whisper; default: %(default)s")
    parser.add_argument("--language", help="code such as en or ko; default: detected for each clip")
    parser.add_argument("--field", default="transcript", help="name of the field; default: %(default)s")
    parser.add_argument("--blank", action="store_true", help="write empty texts instead of transcripts")
    parser.add_argument("--device", help="cpu, cuda:0, ...; default: a GPU if there is one")
    options = parser.parse_args(argv)
    if options.output.resolve().parent != options.manifest.resolve().parent:
        parser.error("OUTPUT must be in the manifest's folder, because audio paths are relative to it")

    rows = read_manifest(options.manifest)
    if options.blank:
        done = {feature_key(row): {"text": ""} for row in rows}
    else:
        done = transcribe(rows, options.manifest, options.output, options.model, options.language, options.device)
    kept = [{**row, options.field: text} for row in rows if (text := done[feature_key(row)].get("text")) is not None]
    rejected = [{"key": key, "reason": entry["reason"]} for key, entry in done.items() if "reason" in entry]
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


def transcribe(
    rows: Sequence[dict[str, Any]], manifest: Path, output: Path, model: str, language: str | None, device: str | None
) -> dict[str, dict[str, str]]:
    """Transcribe every distinct clip once, by greedy search; a hidden file next to `output` stores the progress.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows.
    manifest, output : Path
        The manifest, whose folder audio paths are relative to, and the manifest to be written.
    model : str
        Name or .pt file of openai-whisper.
    language : str, optional
        ISO 639-1 code; detected by default.
    device : str, optional
        By default a GPU if there is one.

    Returns
    -------
    dict
        Key of a clip -> {"text": ...}, or {"reason": ...} if its audio cannot be read.
    """
    import whisper  # openai-whisper, slow to import

    settings = {"model": model, "language": language}
    done = _completed(_journal(output), settings)
    clips = {feature_key(row): row for row in rows}
    todo = [key for key in clips if key not in done]
    if not todo:
        return done
    recognizer = whisper.load_model(model, device=device)
    with _journal(output).open("a", encoding="utf-8") as journal:
        if not done:
            journal.write(json.dumps(settings) + "\n")
        for key in tqdm(todo, desc="transcripts", unit=" clips"):
            row = clips[key]
            try:
                audio = read_audio(audio_path(manifest, row), row["start"], row["duration"]).numpy()
                result = recognizer.transcribe(
                    audio, language=language, temperature=0.0, fp16=recognizer.device.type != "cpu"
                )
                entry = {"text": result["text"].strip()}
            except AudioError as error:
                entry = {"reason": str(error)}
            done[key] = entry
            journal.write(json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n")
            journal.flush()
    return done


def _journal(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _completed(journal: Path, settings: dict[str, Any]) -> dict[str, dict[str, str]]:
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
