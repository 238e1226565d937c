"""Second half of every prepare script: clips -> checked manifests, a list of rejects, and the encoder's features."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from audiolm_lite.audio import SAMPLE_RATE, AudioError, audio_duration, read_audio
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.features.extract import extract, feature_key
from audiolm_lite.parts import build
from audiolm_lite.training.experiment import Key
from data_prep.clips import Clip, CorpusError
from data_prep.questions import questions

SPLITS = ("train", "valid", "test")

PREPARE_KEYS = {
    "seed": Key("Seed of held-out groups and of question wordings.", int),
    "output_folder": Key("Where manifests, features and rejected.jsonl go.", str, result=False),
    "valid_share": Key("Share of the training speakers or source recordings held out for validation.", float),
    "wordings": Key("Questions: varied, or miniasqa, the few its LLM knows.", ("miniasqa", "varied"), "miniasqa"),
    "encoder": Key("Audio encoder block whose features are stored; null writes manifests only.", dict, None),
    "feature_folder": Key("Feature store to write.", str, result=False),
    "batch_seconds": Key("Seconds of audio encoded at once.", float, 120.0, result=False),
    "num_workers": Key("Processes that decode audio ahead.", int, 0, result=False),
    "max_rejects": Key("Share of the clips that may be rejected before preparation stops.", float, 0.01, result=False),
}


def prepare(clips: Sequence[Clip], hparams: dict[str, Any], run_opts: dict[str, Any]) -> None:
    """Write train.jsonl, valid.jsonl, test.jsonl and, where an encoder is given, the features of all clips.

    Run again after an interruption, the extraction goes on where it stopped.

    Parameters
    ----------
    clips : sequence of Clip
        What the corpora hold.
    hparams : dict
        Values of PREPARE_KEYS.
    run_opts : dict
        `device`; `debug` keeps a few clips of each split.

    Raises
    ------
    CorpusError
        More than `max_rejects` of the clips cannot be used, or a split has none. All rejects are then in
        rejected.jsonl of the output folder, as {id, audio, reason}, and no manifest is written.
    """
    output = Path(hparams["output_folder"])
    output.mkdir(parents=True, exist_ok=True)
    if run_opts.get("debug"):
        clips = _few(clips)
    # Without extraction nothing would decode the files before training does, so they are decoded here.
    decode = hparams["encoder"] is None
    rows: dict[Clip, list[dict]] = {}
    reasons: dict[Clip, str] = {}
    for clip in tqdm(clips, desc="clips", unit=" clips"):
        try:
            rows[clip] = _rows(clip, output, hparams, decode)
        except (AudioError, CorpusError) as error:
            reasons[clip] = str(error)
    if not decode:
        reasons |= _extract(rows, output, hparams, run_opts)

    rejected = [{"id": clip.id, "audio": str(clip.audio), "reason": reason} for clip, reason in reasons.items()]
    _write_lines(output / "rejected.jsonl", rejected)
    if len(rejected) > hparams["max_rejects"] * len(clips):
        raise CorpusError(
            f"{len(rejected)} of {len(clips)} clips were rejected, more than max_rejects {hparams['max_rejects']:g} "
            f"allows; all are listed in {output / 'rejected.jsonl'}. The first: {rejected[0]['reason']}"
        )
    by_split: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for clip, clip_rows in rows.items():
        if clip not in reasons:
            by_split[clip.split] += clip_rows
    if empty := [split for split in SPLITS if not by_split[split]]:
        raise CorpusError(f"no clip is left for split {', '.join(empty)}; the corpus is too small or incomplete")
    for split, split_rows in by_split.items():
        write_manifest(output / f"{split}.jsonl", split_rows)
        seconds = {row["audio"]: row["duration"] for row in split_rows}
        tasks = ", ".join(f"{count} {task}" for task, count in sorted(Counter(r["task"] for r in split_rows).items()))
        print(f"{split}: {len(seconds)} clips, {sum(seconds.values()) / 3600:.2f} h; {tasks}")
    print(f"rejected: {len(rejected)} clips{f', see {output}/rejected.jsonl' if rejected else ''}")


def _rows(clip: Clip, output: Path, hparams: dict[str, Any], decode: bool) -> list[dict[str, Any]]:
    """Manifest rows of a clip; raises AudioError or CorpusError where it cannot be used."""
    if clip.text == "":
        raise CorpusError(f"{clip.audio}: no transcript")
    if decode:
        duration = len(read_audio(clip.audio, clip.start, clip.duration)) / SAMPLE_RATE
    else:
        duration = audio_duration(clip.audio) - clip.start if clip.duration is None else clip.duration
    # Relative to the manifest, so that corpus and output can move together.
    audio = os.path.relpath(clip.audio.parent.resolve() / clip.audio.name, output.resolve())
    common = {"audio": audio, "start": clip.start, "duration": duration, "dataset": clip.dataset, "split": clip.split}
    common |= {"language": clip.language, "speaker": clip.speaker}
    return [
        {"id": f"{clip.dataset}-{clip.id}-{question.pop('name')}", **common, **question}
        for question in questions(clip, hparams["seed"], hparams["wordings"])
    ]


def _extract(rows: dict[Clip, list[dict]], output: Path, hparams: dict, run_opts: dict) -> dict[Clip, str]:
    """Store the features; returns the clips that have none, with the reason."""
    folder = Path(hparams["feature_folder"])
    extract(
        chain.from_iterable(rows.values()),
        build("encoders", hparams["encoder"]),
        folder,
        audio_root=output,
        batch_seconds=hparams["batch_seconds"],
        workers=hparams["num_workers"],
        device=run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
        max_rejects=1.0,  # counted together with the other rejects
    )
    listed = folder / "rejected.jsonl"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    reasons = {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}
    return {clip: reasons[key] for clip, (row, *_) in rows.items() if (key := feature_key(row)) in reasons}


def _few(clips: Sequence[Clip], count: int = 8) -> list[Clip]:
    """About `count` clips of each split, spread over it."""
    by_split = defaultdict(list)
    for clip in clips:
        by_split[clip.split].append(clip)
    return [clip for members in by_split.values() for clip in members[:: -(-len(members) // count)]]


def _write_lines(file: Path, entries: list[dict]) -> None:
    unfinished = file.with_name(file.name + ".tmp")
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, file)
