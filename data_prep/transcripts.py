"""Add a transcript by Whisper to every row of a manifest, for prompts that show one (LTU-AS).

    python -m data_prep.transcripts data/test.jsonl data/test_with_transcripts.jsonl --model large-v3

Put {transcript} into the template to use it. A word error rate measured with the transcript in the prompt is mostly
Whisper's own: report the one without beside it, on a manifest made with --blank.

Interrupted, the same command goes on with the clip it was at. Clips that cannot be read are listed in
OUTPUT.rejected.jsonl with the reason, and their rows are left out; the exit status is then 3.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.data.manifest import audio_path, read_manifest, write_manifest
from audiolm_lite.features.keys import feature_key


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe; returns 3 where clips were set aside."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.transcripts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("manifest", type=Path, help="JSON lines; audio paths are relative to its folder")
    parser.add_argument("output", type=Path, help="the same rows with the new field, in the same folder")
    parser.add_argument("--model", default="large-v3", help="openai-whisper's name or .pt file (default: %(default)s)")
    parser.add_argument("--language", help="code such as en or ko; detected for each clip by default")
    parser.add_argument("--field", default="transcript", help="name of the field (default: %(default)s)")
    parser.add_argument("--blank", action="store_true", help="write an empty text in place of Whisper's transcript")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    options = parser.parse_args(argv)
    if options.output.resolve().parent != options.manifest.resolve().parent:
        parser.error("output must lie in the manifest's folder, since audio paths are relative to it")

    rows = read_manifest(options.manifest)
    if options.blank:
        done = {feature_key(row): {"text": ""} for row in rows}
    else:
        done = transcribe(rows, options.manifest, options.output, options.model, options.language, options.device)
    kept = [{**row, options.field: text} for row in rows if (text := done[feature_key(row)].get("text")) is not None]
    rejected = [{"key": key, "reason": entry["reason"]} for key, entry in done.items() if "reason" in entry]
    write_manifest(options.output, kept)
    _write_rejected(Path(f"{options.output}.rejected.jsonl"), rejected)
    _journal(options.output).unlink(missing_ok=True)
    print(f"{options.output}: {len(kept)} of {len(rows)} rows, {len(rejected)} clips set aside")
    return 3 if rejected else 0


def transcribe(
    rows: Sequence[dict[str, Any]], manifest: Path, output: Path, model: str, language: str | None, device: str | None
) -> dict[str, dict[str, str]]:
    """Transcribe every distinct clip once, greedily, in a journal beside `output` that a later run goes on with.

    Returns
    -------
    dict
        Key of a clip -> {"text": ...}, or {"reason": ...} where its audio cannot be read.
    """
    import whisper  # openai-whisper: imports numba, so only where it is needed

    settings = {"model": model, "language": language}
    done = _earlier(_journal(output), settings)
    clips = {feature_key(row): row for row in rows}
    todo = [key for key in clips if key not in done]
    if not todo:
        return done
    whisperer = whisper.load_model(model, device=device)
    with _journal(output).open("a", encoding="utf-8") as journal:
        if not done:
            journal.write(json.dumps(settings) + "\n")
        for key in tqdm(todo, desc="transcripts", unit=" clips"):
            row = clips[key]
            try:
                audio = read_audio(audio_path(manifest, row), row["start"], row["duration"]).numpy()
                heard = whisperer.transcribe(
                    audio, language=language, temperature=0.0, fp16=whisperer.device.type != "cpu"
                )
                entry = {"text": heard["text"].strip()}
            except AudioError as error:
                entry = {"reason": str(error)}
            done[key] = entry
            journal.write(json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n")
            journal.flush()
    return done


def _journal(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _earlier(journal: Path, settings: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Clips of an interrupted run with the same settings; the line that an interruption cut off does not count."""
    if not journal.exists():
        return {}
    text = journal.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    if not lines or json.loads(lines[0]) != settings:
        journal.unlink()
        return {}
    whole = journal.with_name(journal.name + ".tmp")
    whole.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(whole, journal)
    return {entry.pop("key"): entry for entry in map(json.loads, lines[1:])}


def _write_rejected(file: Path, rejected: list[dict[str, str]]) -> None:
    file.unlink(missing_ok=True)
    if rejected:
        file.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
