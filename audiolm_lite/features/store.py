"""Read a feature store: a folder of safetensors shards, key -> features [L, T, D]; format.py describes its files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_lite.features.key_table import Lookup
from audiolm_lite.features.store_format import DTYPES, FeatureStoreError, damage, read_header, read_index, require_equal


class FeatureStore:
    """Read a feature store; shards are memory-mapped on first use, in every DataLoader worker anew.

    Parameters
    ----------
    folder : str or Path
        The store.
    fingerprint : dict, optional
        What the features must be made with, as `encoder.identity()` gives it; anything is taken if None.

    Attributes
    ----------
    fingerprint : dict
        What the features were made with.
    dtype : str
        How they are stored: "float16", "bfloat16", "float32" or "int8".
    num_layers, feature_dim : int
        L and D of every clip's features.

    Raises
    ------
    FeatureStoreError
        No store, another format or fingerprint, or a damaged shard.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, Any] | None = None):
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.fingerprint, self.dtype = header["fingerprint"], header["dtype"]
        if fingerprint is not None:
            asked = json.loads(json.dumps(fingerprint))
            require_equal(self.folder, {"fingerprint": self.fingerprint}, {"fingerprint": asked})
        self.num_layers, self.feature_dim = header["num_layers"], header["feature_dim"]
        self._open_table()

    def _open_table(self) -> None:
        lines = read_index(self.folder)
        for line in lines:
            if fault := damage(self.folder, line, contents=False):
                raise FeatureStoreError(
                    f"{self.folder / line['shard']}: {fault}; run the extraction again, which computes its clips anew"
                )
        self._lookup = Lookup(self.folder, lines)
        self._shards: list[np.ndarray | None] = [None] * len(lines)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lookup", "_shards")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open_table()  # maps do not travel to another process

    def __iter__(self) -> Iterator[str]:
        """All keys, in no particular order."""
        return iter(self._lookup)

    def keys(self) -> list[str]:
        """All keys as a list."""
        return list(self)

    def __contains__(self, key: str) -> bool:
        return self._lookup.find(key) is not None

    def __len__(self) -> int:
        return len(self._lookup)

    def frames(self, key: str) -> int:
        """Frames T of a clip, from the table alone."""
        return self._find(key)[1]

    def frames_of(self, keys: Sequence[str]) -> np.ndarray:
        """Frames [N] int64 of many clips at once, -1 for those that have no features."""
        return self._lookup.find_all(keys, 1)

    def __getitem__(self, key: str) -> Tensor:
        """Features [L, T, D] of a clip; see `read`."""
        return self.read(key)

    def read(self, key: str, layers: Sequence[int] | None = None) -> Tensor:
        """Read a clip's features into memory of their own.

        Parameters
        ----------
        key : str
            The clip.
        layers : sequence of int, optional
            Places among the store's layers, -1 the last; only these are read. All if None.

        Returns
        -------
        Tensor
            [len(layers), T, D], in the dtype they are stored in; int8 comes back as float32.

        Raises
        ------
        FeatureStoreError
            The key is not in the store, or a layer is not.
        """
        shard, frames, begin, scale_begin = self._find(key)
        data = self._shards[shard]
        if data is None:
            data = self._shards[shard] = self._map(shard)
        size, first = frames * self.feature_dim, begin // data.itemsize
        if layers is None:
            count, copied = self.num_layers, data[first : first + self.num_layers * size].copy()
        elif len(layers) == 1 and 0 <= layers[0] < self.num_layers:  # one layer is small: every microsecond shows
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
        places = [first + layer % self.num_layers * size for layer in layers]
        return np.concatenate([data[place : place + size] for place in places])

    def _map(self, shard: int) -> np.ndarray:
        """The whole file as one array of the store's numbers; pages are read when touched.

        By torch, since maps of Python and NumPy keep a file descriptor each, and a large store has more shards than a
        process may have of these. As an array, since these are cut and copied faster than tensors.
        """
        file = self.folder / self._lookup.shards[shard]
        storage = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
        # NumPy has no bfloat16.
        dtype = torch.int16 if self.dtype == "bfloat16" else DTYPES[self.dtype]
        return torch.empty(0, dtype=dtype).set_(storage).numpy()  # type: ignore[arg-type]

    def _find(self, key: str) -> list[int]:
        entry = self._lookup.find(key)
        if entry is None:
            raise FeatureStoreError(
                f"{self.folder}: no features for {key!r}; run the extraction for its manifest, or see rejected.jsonl"
            )
        return entry
