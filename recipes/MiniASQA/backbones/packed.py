"""The backbones' own pretraining corpus: rendered clips packed into a few arrays.

The curriculum's corpus is written as WAV files like any other corpus; these tens of thousands of clips are only ever
read here, as int16 arrays through memory mapping.
"""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.miniasqa.corpus import SHARD, Clip, Plan, make_plans, render


def render_packed(folder: Path, seed: int, split: str, counts: dict[str, int], processes: int) -> "PackedClips":
    """Render `counts` (speech, sound, mixture) clips of a split into `folder`; finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = make_plans(seed, split, **counts)
    # The clips come in one order by kind; mixing them spreads the work evenly over the shards.
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
    # Kind and number of a shard's first clip name it: they do not change when the corpus grows.
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
    temporary = audio.with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate([clip.samples for clip in clips]))
    os.replace(temporary, audio)
    temporary = table.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, table)  # last: a shard counts as finished when its table is there
    return len(clips)


class PackedClips:
    """Rendered clips: `clips[i]` is `(waveform float32 [S], row)` with the row's labels as in the table."""

    def __init__(self, shards: list[tuple[Path, Path]]):
        self._audio = [np.load(audio, mmap_mode="r") for audio, _ in shards]
        self.rows, self._shard = [], []
        for number, (_, table) in enumerate(shards):
            for line in table.read_text().splitlines():
                self.rows.append(json.loads(line))
                self._shard.append(number)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
        row = self.rows[index]
        audio = self._audio[self._shard[index]]
        return audio[row["start"] : row["start"] + row["samples"]].astype(np.float32) / 32768, row
