"""Encoding in batches that fit the memory of the device."""

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class MemoryBoundEncoder:
    """Encode waveforms in as few batches as the memory allows.

    Parameters
    ----------
    encoder : Module
        The encoder, on `device`.
    device : str or device
        Where it runs.
    batch_seconds : float
        Audio encoded at once, padding included. Halved permanently whenever the device runs out of memory.
    """

    def __init__(self, encoder: nn.Module, device: str | torch.device, batch_seconds: float):
        self.encoder, self.device, self.batch_seconds = encoder, device, batch_seconds
        self.halved = False

    def __call__(self, waves: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Encode waveforms [S]; returns (features [B, L, T, D], frames [B]) of the batches they were split into.

        Raises
        ------
        torch.OutOfMemoryError
            A single waveform is too large.
        """
        done, results = 0, []
        while done < len(waves):
            group = waves[done : done + self._count_fitting(waves[done:])]
            result = self._encode(group)
            if result is None:
                self._halve(group)
            else:
                results.append(result)
                done += len(group)
        return results

    def _encode(self, waves: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Encode one batch; None if it is too large for the memory."""
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        try:
            with torch.inference_mode():
                return self.encoder(padded.to(self.device), lengths.to(self.device))
        except torch.OutOfMemoryError:
            if len(waves) == 1:
                raise
        return None  # outside of `except`, where the error would keep the encoder's tensors in memory

    def _halve(self, waves: list[Tensor]) -> None:
        self.batch_seconds = self._cost(len(waves), max(map(len, waves))) / 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.halved:
            log.warning(
                "%s ran out of memory on %d clips at once; continuing with smaller batches. Next time, set "
                "batch_seconds to %.0f",
                self.device,
                len(waves),
                self.batch_seconds,
            )
        self.halved = True

    def _count_fitting(self, waves: list[Tensor]) -> int:
        longest = 0
        for count, wave in enumerate(waves):
            longest = max(longest, len(wave))
            if count and self._cost(count + 1, longest) > self.batch_seconds:
                return count
        return len(waves)

    def _cost(self, clips: int, samples: int) -> float:
        return clips * self.encoder.num_frames(samples) * self.encoder.frame_seconds
