"""Audio out of tar shards, read in order: what network file systems and object stores are fast at.

The shards are those of NeMo and WebDataset; `python -m data_prep.tar` writes them.
"""

import io
import json
import logging
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.data.manifest import ManifestError, iterate_manifest

log = logging.getLogger(__name__)


def import_webdataset() -> ModuleType:
    """Return the library webdataset, which is not installed by default; raises ImportError with the remedy."""
    try:
        import webdataset
    except ImportError as error:
        raise ImportError('tarred audio needs webdataset; run: pip install "audiolm_lite[data]"') from error
    return webdataset


def expand_shards(pattern: str | Path) -> list[Path]:
    """Files that a pattern stands for.

    Parameters
    ----------
    pattern : str or Path
        A path with ranges as NeMo writes them, audio__OP_0..511_CL_.tar, or as shells do, audio_{0..511}.tar.
    """
    from braceexpand import braceexpand  # comes with webdataset

    return [Path(path) for path in braceexpand(str(pattern).replace("_OP_", "{").replace("_CL_", "}"))]


class TarredAudio(IterableDataset):
    """Rows of a tarred manifest with their audio; each row once an epoch over all ranks and workers.

    Shards are put in a new order each epoch. The rows in that order are cut into one run for each rank and each run
    into one for each worker, all of the same length give or take one row, wherever the cuts fall: a shard with a cut in
    it is read by both sides, each of which passes over the other's rows. So there may be fewer shards than workers, and
    no rank has more than one row more than another. (Rows set aside while reading are missing afterwards: ranks that
    must stay in step have to stop at the fewest steps that any of them has.)

    Within a run, rows come out of a buffer in random order. Order and runs depend on seed, epoch, ranks and workers
    alone.

    Parameters
    ----------
    manifest : str or Path
        JSON lines in the schema of `data/manifest.py` with a field `shard_id`; `audio` names the member of the shard,
        of which folders are ignored. `data_prep.convert` makes one of NeMo's tarred_audio_manifest.json.
    shards : str or Path
        Pattern for `expand_shards`. A shard's id is the last number in its file's name.
    rejected : str or Path
        JSON lines to which {shard, member, ids, epoch, reason} is added for whatever cannot be read.
    tasks : sequence of str, optional
        Keep rows of these tasks only.
    split : str, optional
        Keep rows of this split only.
    rank, world_size : int
        This process and the number of processes.
    shuffle : int
        Clips in the buffer, as encoded bytes; 0 keeps the order of shards and of the rows in them.
    seed : int

    Raises
    ------
    ManifestError
        A row without `shard_id` or of a shard that is not there, or no row at all.
    """

    def __init__(
        self,
        manifest: str | Path,
        shards: str | Path,
        *,
        rejected: str | Path,
        tasks: Sequence[str] | None = None,
        split: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: int = 1000,
        seed: int = 0,
    ):
        import_webdataset()
        self.rejected, self.rank, self.world_size = Path(rejected), rank, world_size
        self.shuffle, self.seed = shuffle, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live on
        files = {shard_id(file): file for file in expand_shards(shards)}
        if missing := [str(file) for file in files.values() if not file.is_file()]:
            raise ManifestError(f"{shards}: {len(missing)} shards are not there, the first is {missing[0]}; fetch them")
        lines: dict[int, list[bytes]] = defaultdict(list)
        for row in iterate_manifest(manifest):
            if row.get("shard_id") not in files:
                raise ManifestError(
                    f'{manifest}, row "{row["id"]}", field "shard_id": {row.get("shard_id")!r}; '
                    f"write the number of one of the {len(files)} shards of {shards}"
                )
            if (tasks is None or row["task"] in tasks) and (split is None or row["split"] == split):
                lines[row["shard_id"]].append(json.dumps(row, ensure_ascii=False).encode())
        if not lines:
            raise ManifestError(f"{manifest}: no row has tasks {tasks} and split {split}; correct one of them")
        # One piece of bytes a shard: forked workers share it, where counting references would copy row by row.
        self._shards = [(files[shard], b"\n".join(lines[shard]), len(lines[shard])) for shard in sorted(lines)]

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        first, last = self._run()
        return last - first

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; to be called before each pass, in the main process."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield rows and waveforms [S], float32 at 16 kHz, of this rank and worker."""
        worker = get_worker_info()
        first, last = self._run()
        if worker is not None:
            first, last = _part(worker.id, worker.num_workers, first, last)
        epoch = int(self._epoch)
        clips = self._clips(first, last, epoch)
        if self.shuffle:
            rng = random.Random(f"{self.seed} {epoch} {first} {last}")
            clips = import_webdataset().shuffle(self.shuffle, initial=self.shuffle, rng=rng)(clips)
        for row, shard, member, data in clips:
            try:
                yield row, read_audio(_named(data, f"{shard}/{member}"), row["start"], row["duration"])
            except AudioError as error:
                self._set_aside(shard, member, [row], epoch, error.reason)

    def _run(self) -> tuple[int, int]:
        """First and last row (exclusive) of this rank."""
        return _part(self.rank, self.world_size, 0, sum(count for _, _, count in self._shards))

    def _clips(self, first: int, last: int, epoch: int) -> Iterator[tuple[dict[str, Any], Path, str, bytes]]:
        """Rows `first` to `last` of the epoch's order with shard, member and encoded audio."""
        order = range(len(self._shards))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self._shards)).tolist()
        begin = 0
        for index in order:
            shard, lines, count = self._shards[index]
            rows = slice(max(first - begin, 0), max(last - begin, 0))
            begin += count
            if rows.start < min(rows.stop, count):
                yield from self._members(shard, lines.split(b"\n")[rows], epoch)

    def _members(
        self, shard: Path, lines: list[bytes], epoch: int
    ) -> Iterator[tuple[dict[str, Any], Path, str, bytes]]:
        """The rows of these lines, in the order in which the shard has their audio."""
        wanted: dict[str, list[dict]] = defaultdict(list)
        for line in lines:
            row = json.loads(line)
            wanted[Path(row["audio"]).name].append(row)
        reason = "the shard has no such member; write it again"
        try:
            with shard.open("rb") as stream:
                files = import_webdataset().tariterators.tar_file_iterator(stream, skip_meta=None)
                while wanted and (file := next(files, None)) is not None:
                    member = Path(file["fname"]).name
                    for row in wanted.pop(member, ()):
                        yield row, shard, member, file["data"]
        except (OSError, tarfile.TarError, EOFError) as error:
            reason = f"the shard cannot be read up to it ({error}); fetch it again"
        for member, rows in wanted.items():
            self._set_aside(shard, member, rows, epoch, reason)

    def _set_aside(self, shard: Path, member: str, rows: list[dict], epoch: int, reason: str) -> None:
        ids = [row["id"] for row in rows]
        log.warning("%s, %s: %s; set aside: %s", shard, member, reason, ", ".join(ids))
        entry = {"shard": str(shard), "member": member, "ids": ids, "epoch": epoch, "reason": reason}
        self.rejected.parent.mkdir(parents=True, exist_ok=True)
        with self.rejected.open("ab", buffering=0) as file:  # one write, so that workers do not mix their lines
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _part(index: int, parts: int, first: int, last: int) -> tuple[int, int]:
    """The part number `index` of `parts` of the range first..last."""
    size = last - first
    return first + size * index // parts, first + size * (index + 1) // parts


def shard_id(file: Path) -> int:
    """Number of a shard: the last one in its name; raises ManifestError where there is none."""
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise ManifestError(f"{file}: a shard's name ends in its number, such as audio_0.tar; rename it")
    return int(numbers[-1])


def _named(data: bytes, name: str) -> BinaryIO:
    file = io.BytesIO(data)
    file.name = name  # what messages call it
    return file
