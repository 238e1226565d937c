"""Create MiniASQA and its features: WAV files, train.jsonl, valid.jsonl, test.jsonl, and a feature store.

An interrupted command continues where it stopped; repeated after the end, it takes seconds. With --shard I/N the
command renders only the I-th of N parts of the clips: start all parts and, when they are done, the command without it.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from audiolm_lite.config.errors import ConfigError, run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.registry import build
from audiolm_lite.config.start import start_run
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.distributed.partition import Partition, parse_partition
from audiolm_lite.features.extract import extract
from audiolm_lite.storage.atomic import write_text
from data_prep.miniasqa import VERSION
from data_prep.miniasqa.corpus import RATE, SHARD, Clip, make_plans, render
from data_prep.miniasqa.questions import rows_for, spoken_labels
from data_prep.miniasqa.voices import SPEAKERS

KINDS = ("speech", "sound", "mixture")
OPTIONAL_KINDS = ("noise",)
KEYS = {
    "seed": Key("Seed of the corpus; the same seed gives the same bytes.", int),
    "data_folder": Key("Folder for audio, manifests and features.", str),
    "clips": Key(
        "Clips per split: {train: {speech, sound, mixture, noise}, valid: ..., test: ...}. Noise may be left out; with "
        "it, sounds are asked for their transcript too, which is empty.",
        dict,
    ),
    "processes": Key("Rendering processes.", int, 2),
    "shard": Key("I/N: render only the I-th of N parts of the clips.", str, None),
    "encoder": Key("Audio encoder block.", dict),
    "feature_folder": Key("Feature store to write.", str),
    "batch_seconds": Key("Seconds of audio encoded at once.", float, 120.0),
}


def main(argv: Sequence[str]) -> None:
    """Write audio, manifests and features as in `FILE.yaml --key value ...`."""
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    folder = Path(hparams["data_folder"])
    partition = parse_partition(hparams["shard"]) if hparams["shard"] else Partition(0, 1, finishes=True)
    rows = []
    for split, counts in hparams["clips"].items():
        kinds = set(counts) if isinstance(counts, dict) else set()
        if split not in SPEAKERS or kinds - {*OPTIONAL_KINDS} != set(KINDS):
            raise ConfigError(
                f"clips: {{{split}: {counts}}} must be one of {', '.join(SPEAKERS)} with a number of clips for each of "
                f"{', '.join(KINDS)}, as in train: {{speech: 100, sound: 50, mixture: 0}}"
            )
        if run_opts.get("debug"):
            counts = {kind: min(count, 6) for kind, count in counts.items()}
        split_rows = render_split(folder, split, hparams["seed"], counts, hparams["processes"], partition)
        if not partition.finishes:
            continue
        write_manifest(folder / f"{split}.jsonl", split_rows)
        hours = sum({row["audio"]: row["duration"] for row in split_rows}.values()) / 3600
        print(f"{split}: {len({row['audio'] for row in split_rows})} clips, {hours:.2f} h, {len(split_rows)} questions")
        rows += split_rows
    if not partition.finishes:
        return
    summary = extract(
        rows,
        build("encoders", hparams["encoder"]),
        hparams["feature_folder"],
        audio_root=folder,
        batch_seconds=hparams["batch_seconds"],
        device=run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    print(f"features: {summary}")


def render_split(
    folder: Path, split: str, seed: int, counts: dict[str, int], processes: int, partition: Partition
) -> list[dict[str, Any]]:
    """Render the clips of a split that are missing in a partition, and return the partition's manifest rows.

    Parameters
    ----------
    folder : Path
        Data folder.
    split : {"train", "valid", "test"}
        The split.
    seed : int
        Seed of the corpus.
    counts : dict
        Number of clips of each kind: speech, sound, mixture and, optionally, noise.
    processes : int
        Number of rendering processes.
    partition : Partition
        The shards to render.

    Raises
    ------
    ConfigError
        The folder has shards of other numbers of clips.
    """
    plans = make_plans(seed, split, **counts)
    shards = [plans[i : i + SHARD] for i in range(0, len(plans), SHARD)][partition.rank :: partition.world_size]
    tables = [folder / "audio" / split / f"{shard[0].name}.jsonl" for shard in shards]
    (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    missing = [plan for shard, table in zip(shards, tables, strict=True) if not table.exists() for plan in shard]
    count = sum(map(len, shards))
    with tqdm(total=count, initial=count - len(missing), unit="clip", desc=f"audio {split}") as progress:
        finish = partial(_save_shard, folder=folder, seed=seed, no_speech=bool(counts.get("noise")))
        for done in render(missing, finish, processes):
            progress.update(done)
    rows = [json.loads(line) for table in tables for line in table.read_text(encoding="utf-8").splitlines()]
    audio = {f"audio/{split}/{plan.name}.wav" for shard in shards for plan in shard}
    unasked = any(counts.get("noise") and row["kind"] == "sound" for row in rows) and not any(
        row["task"] == "no_speech" and row["kind"] == "sound" for row in rows
    )
    if unasked or {row["audio"] for row in rows} != audio:
        raise ConfigError(
            f"{folder / 'audio' / split} was made with other numbers of clips; delete it, or choose another data_folder"
        )
    return rows


def _save_shard(clips: list[Clip], folder: Path, seed: int, no_speech: bool) -> int:
    """Write a shard's WAV files and then its table of manifest rows, which marks the shard as finished."""
    rows = []
    for clip in clips:
        plan = clip.plan
        audio = f"audio/{plan.split}/{plan.name}.wav"
        soundfile.write(folder / audio, clip.samples, RATE, subtype="PCM_16")
        # One question about the voice per training clip: more clips are a better use of the quick start's minutes.
        voice_questions = 1 if plan.split == "train" else 3
        questions = rows_for(plan, np.random.default_rng([*plan.seed, 11]), voice_questions, no_speech)
        for number, question in enumerate(questions):
            row = {"id": f"{plan.name}-{number}-{question['task']}", "audio": audio, "start": 0.0}
            row |= {"duration": len(clip.samples) / RATE} | question
            row |= {"dataset": "MiniASQA", "split": plan.split, "language": "en"}
            row |= {"speaker": plan.speaker.name if plan.speaker else "", "kind": plan.kind}
            row |= {"synthetic": True, "version": VERSION, "seed": seed}
            # For the closed-form initialisation of the projection.
            row |= {"words": clip.words, "clip_labels": spoken_labels(plan)}
            rows.append(row)
    table = folder / "audio" / clips[0].plan.split / f"{clips[0].plan.name}.jsonl"
    write_text(table, "".join(json.dumps(row) + "\n" for row in rows))
    return len(clips)


if __name__ == "__main__":
    run_command(main)
