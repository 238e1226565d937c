"""The tensors of a batch, which is what an audio language model takes."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

AUDIO_SLOT = -1  # input id of a position that an audio token fills
IGNORE = -100  # label of a position without supervision


@dataclass
class Batch:
    """Padded items; B rows with A audios in reading order.

    Attributes
    ----------
    ids, rows : list
        Manifest ids and rows, length B.
    features : Tensor or None
        [A, L, T, D] as stored, zeros after `frames` [A] int64.
    waveforms : Tensor or None
        [A, S] float32 at 16 kHz, zeros after `samples` [A] int64.
    input_ids : Tensor
        [B, S] int64; AUDIO_SLOT at audio tokens, 0 at padding (only the mask says what is padding).
    attention_mask : Tensor
        [B, S] bool, True at tokens.
    labels : Tensor
        [B, S] int64, not shifted; IGNORE where nothing is supervised.
    position_ids : Tensor or None
        [B, S] int64, for layouts of publications that count padding as positions and learn from what they predict
        there. None, as `collate` leaves it: positions count tokens, and padding changes nothing.
    audio_rows : Tensor or None
        [A] int64, the row that each audio belongs to; None is one audio a row.
    packed : bool
        All items stand one after the other in a single row without padding; `position_ids` start anew with each, and
        none sees another.
    seconds : float
        Duration of all clips, without padding.
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

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in tensors.items() if isinstance(t, Tensor)})

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to `device`, without waiting where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; DataLoader(pin_memory=True) calls this."""
        return self._map(Tensor.pin_memory)
