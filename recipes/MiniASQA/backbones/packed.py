"""The pretraining corpus of the backbones: rendered clips in a few memory-mapped arrays.

The recipe's corpus is WAV files, like other corpora. These tens of thousands of clips are read only here, so int16
arrays are enough.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiolm_lite.storage.atomic import atomic_path, write_text
from data_prep.miniasqa.corpus import SHARD, Clip, Plan, make_plans, render


def render_packed(folder: Path, seed: int, split: str, counts: dict[str, int], processes: int) -> "PackedClips":
    """Render `counts` clips of a split (speech, sound, mixture) into `folder`; finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = make_plans(seed, split, **counts)
    # The plans are sorted by kind; a random order balances the shards.
    plans = [plans[i] for i in np.random.default_rng(seed).permutation(len(plans))]
    shards = [plans[i : i + SHARD] for i in range(0, len(plans), SHARD)]
    missing = [p for shard in shards if not _paths(folder, shard)[1].exists() for p in shard]
    if missing:
        progress = tqdm(total=len(missing), unit="clip", desc=f"rendering {split}")
        for done in render(missing, partial(_save, folder=folder), processes):
            progress.update(done)
        progress.close()
    return PackedClips([_paths(folder, shard) for shard in shards])


def _paths(folder: Path, plans: list[Plan]) -> tuple[Path, Path]:
    # A shard has the name of its first clip, which does not change when the corpus grows.
    return folder / f"{plans[0].name}.npy", folder / f"{plans[0].name}.jsonl"


def _save(clips: list[Clip], folder: Path) -> int:
    audio, table = _paths(folder, [clip.plan for clip in clips])
    rows, start = [], 0
    for clip in clips:
        plan = clip.plan
        rows.append(
            {
                "name": plan.name,
                "kind": plan.kind,
                "start": start,
                "samples": len(clip.samples),
                "words": clip.words,
                "phonemes": clip.phonemes,
                "gender": plan.speaker.gender if plan.speaker else None,
                "age": plan.speaker.age if plan.speaker else None,
                "emotion": plan.emotion,
                "sound": plan.sound.label if plan.sound else None,
                "fast": plan.sound.fast if plan.sound else None,
                "trend": plan.sound.trend if plan.sound else None,
            }
        )
        start += len(clip.samples)
    with atomic_path(audio) as unfinished, unfinished.open("wb") as file:
        np.save(file, np.concatenate([clip.samples for clip in clips]))
    write_text(table, "".join(json.dumps(row) + "\n" for row in rows))  # last: it marks the shard as finished
    return len(clips)


class PackedClips:
    """Rendered clips: `clips[i]` is `(waveform float32 [S], row)`, with the labels in the row."""

    def __init__(self, shards: list[tuple[Path, Path]]):
        self._audio = [np.load(audio, mmap_mode="r") for audio, _ in shards]
        self.rows, self._shard = [], []
        for number, (_, table) in enumerate(shards):
            for line in table.read_text(encoding="utf-8").splitlines():
                self.rows.append(json.loads(line))
                self._shard.append(number)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        row = self.rows[index]
        audio = self._audio[self._shard[index]]
        return audio[row["start"] : row["start"] + row["samples"]].astype(np.float32) / 32768, row
