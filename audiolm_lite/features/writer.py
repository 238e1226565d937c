"""Write a feature store; store_format.py describes its files.

A shard counts once its line is in the index, and that line is written after the shard has its final name. So an
interruption costs no more than the clips that were not flushed.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.features.key_table import open_key_table
from audiolm_lite.features.store_format import (
    DTYPES,
    FORMAT,
    SCALE,
    FeatureStoreError,
    find_damage,
    quantize_int8,
    read_header,
    read_index,
    require_equal,
)
from audiolm_lite.storage.atomic import atomic_path, write_bytes
from audiolm_lite.storage.hashes import crc32_of
from audiolm_lite.storage.locks import ProcessLock


class UnfitFeaturesError(FeatureStoreError):
    """The features or the key of one clip cannot be stored; other clips are not affected."""


class FeatureWriter:
    """Add features to a new store, or to one that an earlier run left unfinished.

    Opening it compares the checksums of this rank's shards from earlier runs, and the sizes of all others. Damaged
    shards are removed from the index, so their keys are no longer in the store.

    Parameters
    ----------
    folder : str or Path
        The store; several ranks may write to it at the same time.
    fingerprint : dict
        Everything that determines the features (JSON values), as `encoder.identity()` returns it.
    dtype : {"float16", "bfloat16", "float32", "int8"}
        dtype on disk; int8 has one float32 scale per layer and dimension of a clip.
    long_audio : str
        Rule that was applied to clips that are longer than the encoder accepts.
    shard_bytes : int
        A shard is closed when it contains this many bytes.
    flush_seconds : float
        A shard is closed when its first clip is this old, so that an interruption costs no more work than that.
    rank, world_size : int
        This process, which has its own shards and index, and the number of processes. If earlier runs had more
        processes, rank `r % world_size` checks the shards of rank r.

    Raises
    ------
    FeatureStoreError
        The folder has a store of other settings or format, or another process writes to it as the same rank.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> from audiolm_lite.features.store import FeatureStore
    >>> FeatureStore(folder)["a.flac"].shape
    torch.Size([2, 50, 8])
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
        self._lock = self._lock_rank()
        # Through JSON, so that the given values compare equal to those read back (tuples become lists).
        fingerprint = json.loads(json.dumps(fingerprint))
        self.header = {"format": FORMAT, "dtype": dtype, "long_audio": long_audio, "fingerprint": fingerprint}
        if (self.folder / "store.json").exists():
            stored = read_header(self.folder)
            require_equal(self.folder, {key: stored[key] for key in self.header}, self.header)
            self.header = stored

        self.index = self.folder / f"index-{rank:02d}.jsonl"
        self.number = self._remove_interrupted(alone=world_size == 1)
        self._revoke_damaged(world_size)
        self.stored = open_key_table(self.folder, read_index(self.folder))
        self.new: set[str] = set()  # keys flushed by this writer
        self.pending: dict[str, Tensor] = {}
        self.pending_keys: set[str] = set()
        self.pending_bytes, self.pending_since = 0, 0.0
        self.cut: dict[str, Any] = {}  # of pending clips

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # also after an error, since the clips before it are valid

    def __contains__(self, key: str) -> bool:
        return key in self.new or key in self.pending_keys or self.stored.find(key) is not None

    def add(self, key: str, features: Tensor, cut: dict[str, Any] | None = None) -> None:
        """Store features under a new key.

        Parameters
        ----------
        key : str
            Key of the clip.
        features : Tensor
            [L, T, D], floating point, on any device.
        cut : dict, optional
            For the index: what was left out of the clip, or how it was divided.

        Raises
        ------
        UnfitFeaturesError
            The features are not finite in the store's dtype, or the key cannot be a tensor's name.
        FeatureStoreError
            The key is stored already, the shape does not fit the store, or the disk is full.
        """
        self._check(key, features)
        if "feature_dim" not in self.header:
            layers, _, dim = features.shape
            self.header |= {"num_layers": layers, "feature_dim": dim}
            try:
                write_bytes(self.folder / "store.json", json.dumps(self.header, indent=1).encode(), sync=True)
            except OSError as error:
                self._raise_unwritable(self.folder / "store.json", error)
        if not self.pending:
            self.pending_since = time.monotonic()
        if self.dtype == "int8":
            self.pending[key], self.pending[key + SCALE] = quantize_int8(features.detach().cpu())
            self.pending_bytes += self.pending[key + SCALE].nbytes
        else:
            # A copy: a slice would keep the batch it is from in memory, and safetensors refuses to save it.
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
        """Write what is pending; the writer can still be used."""
        if self.pending:
            self._flush()

    def _check(self, key: str, features: Tensor) -> None:
        """Raise FeatureStoreError if the store cannot have these features under this key."""
        if key in self:
            raise FeatureStoreError(f"{self.folder}: key {key!r} is stored already; skip keys that are in the writer")
        if "\0" in key or key == "__metadata__" or not _is_unicode(key):
            raise UnfitFeaturesError(f"{self.folder}: {key!r} cannot be the name of a tensor; rename the audio file")
        if features.ndim != 3 or 0 in features.shape:
            raise FeatureStoreError(f"{self.folder}: {key!r}: shape {tuple(features.shape)} is not [L, T, D]")
        layers, _, dim = features.shape
        expected = self.header.get("num_layers", layers), self.header.get("feature_dim", dim)
        if (layers, dim) != expected:
            raise FeatureStoreError(
                f"{self.folder}: {key!r}: {layers} layers of dimension {dim}; the store has {expected[0]} of "
                f"{expected[1]}"
            )
        # Minimum and maximum show NaN and overflow, many times faster than isfinite does in 16 bits.
        largest = torch.finfo(torch.float32 if self.dtype == "int8" else DTYPES[self.dtype]).max
        low, high = features.aminmax()
        if not (-largest <= low and high <= largest):
            raise UnfitFeaturesError(
                f"{self.folder}: {key!r}: NaN or infinite in {self.dtype}; store bfloat16 or float32"
            )

    def _flush(self) -> None:
        tensors, keys, cut = self.pending, self.pending_keys, self.cut
        # Cleared first: if writing fails, closing the writer must not fail again on the same clips.
        self.pending, self.pending_keys, self.pending_bytes, self.cut = {}, set(), 0, {}
        shard = self.folder / f"features-{self.rank:02d}-{self.number:05d}.safetensors"
        self.number += 1
        try:
            with atomic_path(shard, sync=True) as unfinished:
                save_file(tensors, unfinished)  # unlike `save`, it does not block other threads
                size, crc32 = unfinished.stat().st_size, crc32_of(unfinished)
        except (OSError, SafetensorError) as error:
            self._raise_unwritable(shard, error)
        self._append({"shard": shard.name, "bytes": size, "crc32": crc32, "cut": cut})
        self.new |= keys

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line to the index, or leave the index unchanged."""
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

    def _raise_unwritable(self, file: Path, error: Exception) -> NoReturn:
        free = shutil.disk_usage(self.folder).free
        raise FeatureStoreError(
            f"{file}: cannot be written ({error}); {free / 1e6:.0f} MB are free in {self.folder}. The clips stored so "
            "far remain usable: free space or correct the permissions, and run again"
        ) from error

    def _lock_rank(self) -> ProcessLock:
        """Lock this rank until the process ends: two writers of one rank would delete each other's files."""
        try:
            return ProcessLock(self.folder / f"writer-{self.rank:02d}.lock")
        except BlockingIOError as error:
            raise FeatureStoreError(
                f"{self.folder}: another process is writing to this store as rank {self.rank}; wait for its end, or "
                "give each process a rank of its own"
            ) from error

    def _remove_interrupted(self, alone: bool) -> int:
        """Delete what an interrupted run left, and return the number of the next shard.

        Deleted are an index line without a line end, shards without a line, and temporary files. Temporary files that
        any rank may write are only deleted by a writer that is alone, since other ranks may be about to rename theirs.
        The number is above every number that an index has, including revoked ones.
        """
        if self.index.exists():
            content = self.index.read_bytes()
            os.truncate(self.index, content.rfind(b"\n") + 1)
        known = {line["shard"] for line in read_index(self.folder)}
        own = f"features-{self.rank:02d}-"
        for file in self.folder.glob(f"{own}*"):
            if file.name not in known:
                file.unlink()
        for file in self.folder.glob("*.tmp" if alone else f".{own}*.tmp"):
            file.unlink(missing_ok=True)
        indexes = "".join(file.read_text(encoding="utf-8") for file in self.folder.glob("index-*.jsonl"))
        return 1 + max(map(int, re.findall(rf'"{own}(\d+)\.safetensors"', indexes)), default=-1)

    def _revoke_damaged(self, world_size: int) -> None:
        """Add a line to this rank's index for every damaged shard, and delete the shard."""
        for line in read_index(self.folder):
            responsible = _rank_of(line["shard"]) % world_size == self.rank
            if find_damage(self.folder, line, contents=responsible):
                # Not by removing the shard's line: another rank may be appending to its index at the same time.
                self._append({"lost": line["shard"]})
                (self.folder / line["shard"]).unlink(missing_ok=True)


def _rank_of(shard: str) -> int:
    return int(shard.split("-")[1])


def _is_unicode(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:  # a file name of bytes that are not valid UTF-8
        return False
    return True
