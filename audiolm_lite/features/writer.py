"""Write a feature store; format.py describes its files.

A shard counts once its line is in the index, and the line is written after the shard has its final name. So whatever
interrupts a writer costs only what it had not yet flushed.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.features.key_table import Lookup
from audiolm_lite.features.store_format import (
    DTYPES,
    FORMAT,
    SCALE,
    FeatureStoreError,
    checksum,
    damage,
    quantise,
    read_header,
    read_index,
    require_equal,
    write_atomically,
)


class UnfitFeaturesError(FeatureStoreError):
    """One clip's features or key that the store cannot hold; others are not concerned."""


class FeatureWriter:
    """Add features to a store, a new one or one that an earlier run left unfinished.

    Opening it reads this rank's shards of an earlier run against their checksums, and compares the sizes of all others.
    What is damaged is given up, and its keys are no longer in the writer.

    Parameters
    ----------
    folder : str or Path
        The store; several ranks may write to it at the same time.
    fingerprint : dict
        All that decides the features (JSON values), as `encoder.identity()` gives it.
    dtype : {"float16", "bfloat16", "float32", "int8"}
        How features are stored; int8 with one float32 scale for each layer and dimension of a clip.
    long_audio : str
        What was done with clips that are longer than the encoder takes.
    shard_bytes : int
        A shard is closed when it holds this much.
    flush_seconds : float
        A shard is closed when its first clip is this old, so that an interruption costs no more work than that.
    rank, world_size : int
        Process that writes, each has its own shards and index; and how many share the work. With fewer processes than
        before, the shards of a rank r that is no more are checked by rank r % world_size.

    Raises
    ------
    FeatureStoreError
        The folder holds a store of other settings or format, or another process writes to it as this rank.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: dict[str, Any],
        dtype: str = "float16",
        *,
        long_audio: str = "reject",
        shard_bytes: int = 1 << 30,
        flush_seconds: float = 60,
        rank: int = 0,
        world_size: int = 1,
    ):
        if dtype not in DTYPES:
            raise FeatureStoreError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        self.folder, self.dtype, self.rank = Path(folder), dtype, rank
        self.shard_bytes, self.flush_seconds = shard_bytes, flush_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_rank()
        # Through JSON, so that what was just given compares equal to what is read back (tuples become lists).
        fingerprint = json.loads(json.dumps(fingerprint))
        self.header = {"format": FORMAT, "dtype": dtype, "long_audio": long_audio, "fingerprint": fingerprint}
        if (self.folder / "store.json").exists():
            stored = read_header(self.folder)
            require_equal(self.folder, {key: stored[key] for key in self.header}, self.header)
            self.header = stored

        self.index = self.folder / f"index-{rank:02d}.jsonl"
        self._drop_what_was_interrupted(alone=world_size == 1)
        lines = read_index(self.folder)
        for line in lines:
            mine = _rank_of(line["shard"]) % world_size == rank
            if damage(self.folder, line, contents=mine):
                # A line more, not one less: another rank may be appending to its index at this moment.
                self._append({"lost": line["shard"]})
                (self.folder / line["shard"]).unlink(missing_ok=True)
        self.stored = Lookup(self.folder, read_index(self.folder))
        self.new: set[str] = set()  # keys flushed by this writer
        self.pending: dict[str, Tensor] = {}
        self.pending_keys: set[str] = set()
        self.pending_bytes, self.pending_since = 0, 0.0
        self.cut: dict[str, Any] = {}  # of pending clips

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # also after an error: the clips before it are sound

    def __contains__(self, key: str) -> bool:
        return key in self.new or key in self.pending_keys or self.stored.find(key) is not None

    def add(self, key: str, features: Tensor, cut: dict[str, Any] | None = None) -> None:
        """Store features under a new key.

        Parameters
        ----------
        key : str
            Name of the clip.
        features : Tensor
            [L, T, D], floating point, on any device.
        cut : dict, optional
            What was left out of the clip or how it was divided, for the index.

        Raises
        ------
        UnfitFeaturesError
            The features are not finite in the store's dtype, or the key cannot be a tensor's name.
        FeatureStoreError
            The key is there already, the shape does not fit the store, or the disk is full.
        """
        if key in self:
            raise FeatureStoreError(f"{self.folder}: key {key!r} is stored already; skip keys that are in the writer")
        if "\0" in key or key == "__metadata__" or not _is_unicode(key):
            raise UnfitFeaturesError(f"{self.folder}: {key!r} cannot be the name of a tensor; rename the audio file")
        if features.ndim != 3 or 0 in features.shape:
            raise FeatureStoreError(f"{self.folder}: {key!r}: shape {tuple(features.shape)} is not [L, T, D]")
        layers, _, dim = features.shape
        if "feature_dim" not in self.header:
            self.header |= {"num_layers": layers, "feature_dim": dim}
            try:
                write_atomically(self.folder / "store.json", json.dumps(self.header, indent=1).encode())
            except OSError as error:
                self._raise_unwritable(self.folder / "store.json", error)
        if (layers, dim) != (self.header["num_layers"], self.header["feature_dim"]):
            raise FeatureStoreError(
                f"{self.folder}: {key!r}: {layers} layers of dimension {dim}; the store has "
                f"{self.header['num_layers']} of {self.header['feature_dim']}"
            )
        # Smallest and largest tell of NaN and overflow, many times faster than isfinite does in 16 bits.
        largest = torch.finfo(torch.float32 if self.dtype == "int8" else DTYPES[self.dtype]).max
        low, high = features.aminmax()
        if not (-largest <= low and high <= largest):
            raise UnfitFeaturesError(
                f"{self.folder}: {key!r}: NaN or infinite in {self.dtype}; store bfloat16 or float32"
            )
        if not self.pending:
            self.pending_since = time.monotonic()
        if self.dtype == "int8":
            self.pending[key], self.pending[key + SCALE] = quantise(features.detach().cpu())
            self.pending_bytes += self.pending[key + SCALE].nbytes
        else:
            # A copy: a slice would keep (and safetensors refuse) the whole batch it is from.
            self.pending[key] = features.detach().to(
                "cpu", DTYPES[self.dtype], copy=True, memory_format=torch.contiguous_format
            )
        self.pending_bytes += self.pending[key].nbytes
        self.pending_keys.add(key)
        if cut is not None:
            self.cut[key] = cut
        if self.pending_bytes >= self.shard_bytes or time.monotonic() - self.pending_since >= self.flush_seconds:
            self._flush()

    def close(self) -> None:
        """Write what is pending; the writer may be used further."""
        if self.pending:
            self._flush()

    def _flush(self) -> None:
        tensors, keys, cut = self.pending, self.pending_keys, self.cut
        # Emptied first: where writing fails, closing the writer must not fail again on the same clips.
        self.pending, self.pending_keys, self.pending_bytes, self.cut = {}, set(), 0, {}
        shard = self.folder / f"features-{self.rank:02d}-{self.number:05d}.safetensors"
        self.number += 1
        unfinished = shard.with_name(shard.name + ".tmp")
        try:
            save_file(tensors, unfinished)  # unlike `save`, it lets other threads run meanwhile
            line = {"shard": shard.name, "bytes": unfinished.stat().st_size, "crc32": checksum(unfinished), "cut": cut}
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(unfinished, shard)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            self._raise_unwritable(shard, error)
        self._append(line)
        self.new |= keys

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line to the index, or leave the index as it was."""
        before = self.index.stat().st_size if self.index.exists() else 0
        try:
            with self.index.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.index.exists():
                os.truncate(self.index, before)
            self._raise_unwritable(self.index, error)

    def _raise_unwritable(self, file: Path, error: Exception) -> None:
        free = shutil.disk_usage(self.folder).free
        raise FeatureStoreError(
            f"{file}: cannot be written ({error}); {free / 1e6:.0f} MB are free in {self.folder}. All clips "
            "stored before stay usable: make room or correct the rights, and run again"
        ) from error

    def _take_rank(self) -> Any:
        """Lock this rank, as long as this process lives: two writers of one rank would delete each other's files."""
        file = (self.folder / f"writer-{self.rank:02d}.lock").open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return file  # a file system without locks
            raise FeatureStoreError(
                f"{self.folder}: another process is writing to this store as rank {self.rank}; wait for its end, or "
                "give each process a share of its own"
            ) from error
        return file

    def _drop_what_was_interrupted(self, alone: bool) -> None:
        """Delete the last index line if it has no end, shards without their line, and files without their final name.

        Files that any rank may write are left to a writer that is alone, since others may be about to rename theirs.
        Sets `number`, that of the next shard, above any that ever was in an index: one given up is not used again.
        """
        if self.index.exists():
            content = self.index.read_bytes()
            os.truncate(self.index, content.rfind(b"\n") + 1)
        known = {line["shard"] for line in read_index(self.folder)}
        mine = f"features-{self.rank:02d}-"
        for file in self.folder.glob(f"{mine}*"):
            if file.name not in known:
                file.unlink()
        for file in self.folder.glob("*.tmp") if alone else ():
            file.unlink(missing_ok=True)
        indexes = "".join(file.read_text(encoding="utf-8") for file in self.folder.glob("index-*.jsonl"))
        self.number = 1 + max(map(int, re.findall(rf'"{mine}(\d+)\.safetensors"', indexes)), default=-1)


def _rank_of(shard: str) -> int:
    return int(shard.split("-")[1])


def _is_unicode(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:  # a file name of bytes that are no UTF-8
        return False
    return True
