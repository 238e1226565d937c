"""Read a feature store: a folder of safetensors shards, key -> features [L, T, D]; format.py describes its files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.features.format import DTYPES, FeatureStoreError, damage, read_header, read_index, require_equal
from audiolm_lite.features.lookup import Lookup


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
        self._itemsize = DTYPES[self.dtype].itemsize
        self._open_table()

    def _open_table(self) -> None:
        lines = read_index(self.folder)
        for line in lines:
            if fault := damage(self.folder, line, contents=False):
                raise FeatureStoreError(
                    f"{self.folder / line['shard']}: {fault}; run the extraction again, which computes its clips anew"
                )
        self._lookup = Lookup(self.folder, lines)
        self._shards: list[Tensor | None] = [None] * len(lines)

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
        size, first = frames * self.feature_dim, begin // self._itemsize
        if layers is None:
            shape, strides = (self.num_layers, frames, self.feature_dim), (size, self.feature_dim, 1)
            features = data.as_strided(shape, strides, first).clone()
        else:
            if not layers or not all(-self.num_layers <= layer < self.num_layers for layer in layers):
                raise FeatureStoreError(f"{self.folder}: layers {layers}: the store has 0 to {self.num_layers - 1}")
            shape, strides = (1, frames, self.feature_dim), (size, self.feature_dim, 1)
            places = [first + layer % self.num_layers * size for layer in layers]
            features = torch.cat([data.as_strided(shape, strides, place) for place in places])
        if self.dtype != "int8":
            return features
        count = 4 * self.num_layers * self.feature_dim
        scale = data[scale_begin : scale_begin + count].view(torch.float32).view(self.num_layers, 1, self.feature_dim)
        return features * (scale if layers is None else scale[list(layers)])

    def _map(self, shard: int) -> Tensor:
        """The whole file as one tensor of the store's dtype; pages are read when touched.

        By torch, since Python's mmap keeps a file descriptor each, and a large store has more shards than a process
        may have of these.
        """
        file = self.folder / self._lookup.shards[shard]
        storage = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
        return torch.empty(0, dtype=DTYPES[self.dtype]).set_(storage)

    def _find(self, key: str) -> list[int]:
        entry = self._lookup.find(key)
        if entry is None:
            raise FeatureStoreError(
                f"{self.folder}: no features for {key!r}; run the extraction for its manifest, or see rejected.jsonl"
            )
        return entry
