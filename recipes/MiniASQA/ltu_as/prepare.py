"""Make MiniASQA and its features: python prepare.py hparams/prepare.yaml

Renders the synthetic clips as WAV files, writes the manifests train.jsonl, valid.jsonl and test.jsonl, and extracts the
encoder's features. Run again, it goes on where it stopped; finished, it takes seconds. With --shard I/N it renders the
I-th of N parts of the clips and no more: start all parts, and when they are done the command without it.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.registry import build
from audiolm_lite.config.start import start_run
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.distributed.partition import Partition, parse_partition
from audiolm_lite.features.extract import extract
from data_prep.miniasqa import VERSION
from data_prep.miniasqa.corpus import RATE, SHARD, Clip, make_plans, render
from data_prep.miniasqa.questions import rows_for, spoken_labels

KEYS = {
    "seed": Key("Seed of the corpus; the same seed gives the same bytes.", int),
    "data_folder": Key("Where audio, manifests and features go.", str),
    "clips": Key("Clips per split: {train: {speech, sound, mixture}, valid: ..., test: ...}.", dict),
    "processes": Key("Rendering processes.", int, 2),
    "shard": Key("I/N: render the I-th of N parts of the clips and no more.", str, None),
    "encoder": Key("Audio encoder block.", dict),
    "feature_folder": Key("Feature store to write.", str),
    "batch_seconds": Key("Seconds of audio encoded at once.", float, 120.0),
}


def render_split(
    folder: Path, split: str, seed: int, counts: dict[str, int], processes: int, share: Partition
) -> list[dict]:
    """Render what is missing of this share of a split's clips, and return its manifest rows."""
    plans = make_plans(seed, split, **counts)
    shards = [plans[i : i + SHARD] for i in range(0, len(plans), SHARD)][share.rank :: share.world_size]
    tables = [folder / "audio" / split / f"{shard[0].name}.jsonl" for shard in shards]
    (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    missing = [plan for shard, table in zip(shards, tables, strict=True) if not table.exists() for plan in shard]
    count = sum(map(len, shards))
    with tqdm(total=count, initial=count - len(missing), unit="clip", desc=f"audio {split}") as progress:
        for done in render(missing, partial(save_shard, folder=folder, seed=seed), processes):
            progress.update(done)
    return [json.loads(line) for table in tables for line in table.read_text().splitlines()]


def save_shard(clips: list[Clip], folder: Path, seed: int) -> int:
    """Write a shard's WAV files, then its table of manifest rows: a shard is finished when its table is there."""
    rows = []
    for clip in clips:
        plan = clip.plan
        audio = f"audio/{plan.split}/{plan.name}.wav"
        soundfile.write(folder / audio, clip.samples, RATE, subtype="PCM_16")
        # One question about the voice a training clip: the quick start's minutes go to more clips instead.
        voice_questions = 1 if plan.split == "train" else 3
        questions = rows_for(plan, np.random.default_rng([*plan.seed, 11]), voice_questions)
        for number, question in enumerate(questions):
            row = {"id": f"{plan.name}-{number}-{question['task']}", "audio": audio, "start": 0.0}
            row |= {"duration": len(clip.samples) / RATE} | question
            row |= {"dataset": "MiniASQA", "split": plan.split, "language": "en"}
            row |= {"speaker": plan.speaker.name if plan.speaker else "", "kind": plan.kind}
            row |= {"synthetic": True, "version": VERSION, "seed": seed}
            # For the closed-form start of the projection.
            row |= {"words": clip.words, "clip_labels": spoken_labels(plan)}
            rows.append(row)
    table = folder / "audio" / clips[0].plan.split / f"{clips[0].plan.name}.jsonl"
    table.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(table.with_suffix(".tmp"), table)
    return len(clips)


def main(argv: list[str]) -> None:
    """Write audio, manifests and features."""
    hparams, run_opts, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    folder = Path(hparams["data_folder"])
    share = parse_partition(hparams["shard"]) if hparams["shard"] else Partition(0, 1, finishes=True)
    rows = []
    for split, counts in hparams["clips"].items():
        if run_opts.get("debug"):
            counts = {kind: min(count, 6) for kind, count in counts.items()}
        split_rows = render_split(folder, split, hparams["seed"], counts, hparams["processes"], share)
        if not share.finishes:
            continue
        write_manifest(folder / f"{split}.jsonl", split_rows)
        hours = sum({row["audio"]: row["duration"] for row in split_rows}.values()) / 3600
        print(f"{split}: {len({row['audio'] for row in split_rows})} clips, {hours:.2f} h, {len(split_rows)} questions")
        rows += split_rows
    if not share.finishes:
        return
    encoder = build("encoders", hparams["encoder"])
    summary = extract(
        rows,
        encoder,
        hparams["feature_folder"],
        audio_root=folder,
        batch_seconds=hparams["batch_seconds"],
        device=run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    print(f"features: {summary}")


if __name__ == "__main__":
    main(sys.argv[1:])
