"""The tensors of a batch, the input of an audio language model."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

AUDIO_SLOT = -1  # input id of a position that an audio token fills
IGNORE = -100  # label of a position without supervision


@dataclass
class Batch:
    """Padded items: B rows with A audio clips in reading order.

    Attributes
    ----------
    ids, rows : list
        Manifest ids and rows, length B.
    features : Tensor or None
        [A, L, T, D] in the dtype of the feature store, zeros after `frames` [A] int64.
    waveforms : Tensor or None
        [A, S] float32 at 16 kHz, zeros after `samples` [A] int64.
    input_ids : Tensor
        [B, S] int64; AUDIO_SLOT at audio tokens, 0 at padding (0 can be a token too: only the mask marks padding).
    attention_mask : Tensor
        [B, S] bool, True at tokens.
    labels : Tensor
        [B, S] int64, not shifted; IGNORE where nothing is supervised.
    position_ids : Tensor or None
        [B, S] int64, for the layouts of publications that count padding as positions and learn from predictions
        there. None, as from `collate`: positions count tokens, and padding changes nothing.
    audio_rows : Tensor or None
        [A] int64, row of each audio clip; None: one clip per row.
    packed : bool
        All items follow each other in a single row without padding. `position_ids` restart at 0 with each item, and
        items do not attend to each other.
    seconds : float
        Duration of all clips in seconds, without padding.
    without_audio : bool
        Features are zeros; waveforms give only the number of frames, and the encoder does not read them.
    """

    ids: list[str]
    rows: list[dict]
    features: Tensor | None
    frames: Tensor | None
    waveforms: Tensor | None
    samples: Tensor | None
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor | None = None
    audio_rows: Tensor | None = None
    packed: bool = False
    seconds: float = 0.0
    without_audio: bool = False

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: function(t) for name, t in values.items() if isinstance(t, Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to `device`; on CUDA asynchronously if the memory is pinned."""
        # Elsewhere the copy may read the memory after it is freed.
        asynchronous = torch.device(device).type == "cuda"
        return self._map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._map(Tensor.pin_memory)
