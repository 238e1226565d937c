"""Read a feature store: a folder of safetensors shards with features [L, T, D] by key; its files: store_format.py."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_lite.features.key_table import FRAMES, open_key_table, shard_names
from audiolm_lite.features.store_format import (
    DTYPES,
    FeatureStoreError,
    find_damage,
    read_header,
    read_index,
    require_equal,
)


class FeatureStore:
    """Read a feature store; every process, such as a DataLoader worker, maps a shard into memory on first access.

    Parameters
    ----------
    folder : str or Path
        The store.
    fingerprint : dict, optional
        What the features must be made with, as `encoder.identity()` returns it; not checked if None.

    Attributes
    ----------
    fingerprint : dict
        What the features were made with.
    dtype : str
        dtype on disk: "float16", "bfloat16", "float32" or "int8".
    num_layers, feature_dim : int
        L and D of every clip's features.

    Raises
    ------
    FeatureStoreError
        There is no store in the folder, it has another format or fingerprint, or a shard is damaged.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any] | None = None):
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.fingerprint, self.dtype = header["fingerprint"], header["dtype"]
        if fingerprint is not None:
            requested = json.loads(json.dumps(fingerprint))
            require_equal(self.folder, {"fingerprint": self.fingerprint}, {"fingerprint": requested})
        self.num_layers, self.feature_dim = header["num_layers"], header["feature_dim"]
        self._open_table()

    def _open_table(self) -> None:
        lines = read_index(self.folder)
        for line in lines:
            if damage := find_damage(self.folder, line, contents=False):
                raise FeatureStoreError(
                    f"{self.folder / line['shard']}: {damage}; run the extraction again to replace it"
                )
        self._table = open_key_table(self.folder, lines)
        self._shards = [self.folder / name for name in shard_names(self._table)]
        self._mapped: list[np.ndarray | None] = [None] * len(lines)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_shards", "_mapped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open_table()  # memory maps cannot be pickled

    def __iter__(self) -> Iterator[str]:
        """All keys, in no particular order."""
        return iter(self._table)

    def keys(self) -> list[str]:
        """Return all keys."""
        return list(self)

    def __contains__(self, key: str) -> bool:
        return self._table.find(key) is not None

    def __len__(self) -> int:
        return len(self._table)

    def frames(self, key: str) -> int:
        """Return the frames T of a clip, without reading its features."""
        return self._find(key)[FRAMES]

    def frames_of(self, keys: Sequence[str]) -> np.ndarray:
        """Return the frames [N] int64 of many clips at once, -1 for those without features."""
        return self._table.find_all(keys, FRAMES)

    def __getitem__(self, key: str) -> Tensor:
        """Features [L, T, D] of a clip; see `read`."""
        return self.read(key)

    def read(self, key: str, layers: Sequence[int] | None = None) -> Tensor:
        """Copy a clip's features into memory.

        Parameters
        ----------
        key : str
            The clip.
        layers : sequence of int, optional
            Indices of the layers to read, -1 for the last; all if None.

        Returns
        -------
        Tensor
            [len(layers), T, D], in the dtype on disk; int8 is returned as float32.

        Raises
        ------
        FeatureStoreError
            The key or a layer is not in the store.
        """
        shard, frames, begin, scale_begin = self._find(key)
        data = self._mapped[shard]
        if data is None:
            data = self._mapped[shard] = self._map(self._shards[shard])
        size, first = frames * self.feature_dim, begin // data.itemsize
        if layers is None:
            count, copied = self.num_layers, data[first : first + self.num_layers * size].copy()
        elif len(layers) == 1 and 0 <= layers[0] < self.num_layers:  # fast path: one layer is copied in microseconds
            first += layers[0] * size
            count, copied = 1, data[first : first + size].copy()
        else:
            count, copied = len(layers), self._copy_layers(data, first, size, layers)
        features = torch.from_numpy(copied.reshape(count, frames, self.feature_dim))
        if self.dtype == "bfloat16":
            return features.view(torch.bfloat16)
        if self.dtype != "int8":
            return features
        stored = data[scale_begin : scale_begin + 4 * self.num_layers * self.feature_dim].view(np.float32)
        scale = torch.from_numpy(stored.reshape(self.num_layers, 1, self.feature_dim))
        return features * (scale if layers is None else scale[list(layers)])

    def _copy_layers(self, data: np.ndarray, first: int, size: int, layers: Sequence[int]) -> np.ndarray:
        if not layers or min(layers) < -self.num_layers or max(layers) >= self.num_layers:
            raise FeatureStoreError(f"{self.folder}: layers {layers}: the store has 0 to {self.num_layers - 1}")
        begins = [first + layer % self.num_layers * size for layer in layers]
        return np.concatenate([data[begin : begin + size] for begin in begins])

    def _map(self, shard: Path) -> np.ndarray:
        """Map a file into memory as one array of the store's dtype; pages are read on first access.

        With torch, because a map of Python or NumPy keeps a file descriptor, and a large store has more shards than a
        process may have descriptors. As an array, because slicing and copying are faster than with tensors.
        """
        storage = torch.UntypedStorage.from_file(str(shard), False, shard.stat().st_size)
        # NumPy has no bfloat16.
        dtype = torch.int16 if self.dtype == "bfloat16" else DTYPES[self.dtype]
        return torch.empty(0, dtype=dtype).set_(storage).numpy()  # type: ignore[arg-type]

    def _find(self, key: str) -> list[int]:
        entry = self._table.find(key)
        if entry is None:
            raise FeatureStoreError(
                f"{self.folder}: no features for {key!r}; run the extraction for its manifest, or see rejected.jsonl"
            )
        return entry
