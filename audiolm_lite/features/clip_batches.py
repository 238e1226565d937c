"""Clips to extract: what of each is read and encoded, which form a batch, and their decoding in worker processes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiolm_lite.audio.long_audio import LongAudio, Plan
from audiolm_lite.audio.reading import SAMPLE_RATE, read_audio


def make_batches(plans: Mapping[str, Plan], batch_seconds: float) -> list[list[str]]:
    """Keys in batches of similar length, longest first: if the device's memory does not suffice, it shows at once.

    Of all clips, stored or not: so a clip has the same neighbours, and the same features to the last bit, whatever
    interrupted the extraction before it.
    """
    batches: list[list[str]] = []
    longest, pieces = 0.0, 0
    for key in sorted(plans, key=lambda key: -plans[key].piece_seconds):
        pieces += plans[key].pieces
        if not batches or pieces * longest > batch_seconds:
            batches.append([])
            longest, pieces = plans[key].piece_seconds, plans[key].pieces
        batches[-1].append(key)
    return batches


class DecodedBatches(Dataset):
    """Item i: batch i as ({key: lengths of its pieces}, all their samples in a row, {key: why there are none}).

    One tensor a batch, since each one sent from a worker process takes a file descriptor.

    Parameters
    ----------
    plans : mapping
        Plan of each key.
    batches : list of list of str
        Keys of each batch.
    todo : set of str
        Keys that are wanted; the others are their neighbours, and left out where no wanted one can be read.
    audio_root : Path
        Folder that the audio paths are relative to.
    rule : LongAudio
        Says how clips are divided.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        batches: list[list[str]],
        todo: set[str],
        audio_root: Path,
        rule: LongAudio,
    ):
        self.plans, self.batches, self.todo, self.audio_root, self.rule = plans, batches, todo, audio_root, rule

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, list[int]], Tensor, dict[str, str]]:
        keys = self.batches[index]
        waves, errors = self._read([key for key in keys if key in self.todo])
        if waves:
            waves |= self._read([key for key in keys if key not in self.todo])[0]
        waves = {key: waves[key] for key in keys if key in waves}
        lengths = {key: self.rule.pieces(len(wave)) for key, wave in waves.items()}
        return lengths, torch.cat([torch.empty(0), *waves.values()]), errors

    def _read(self, keys: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
        waves, errors = {}, {}
        for key in keys:
            source, _, _, seconds, cut = self.plans[key]
            try:
                wave = read_audio(self.audio_root / source.audio, source.start, source.duration)
                if cut and "kept" in cut:
                    wave = wave[: round(seconds * SAMPLE_RATE)]  # where resampling gave a sample more
                for piece in self.rule.pieces(len(wave)):
                    self.rule.encoder.num_frames(piece)  # the manifest's duration may have been wrong
                waves[key] = wave
            except ValueError as error:  # AudioError among them
                errors[key] = str(error)
        return waves, errors
