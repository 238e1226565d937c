"""Batches of clips to extract, and their decoding in worker processes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiolm_lite.audio.long_audio import ClipPlan, LongAudio


def make_batches(plans: Mapping[str, ClipPlan], batch_seconds: float) -> list[list[str]]:
    """Return the keys in batches of similar length, longest first, so that a lack of memory shows at once.

    Plans of all clips are needed, stored or not: then a clip is in the same batch, and its features are equal to the
    last bit, whatever interrupted the extraction before.

    Examples
    --------
    >>> from audiolm_lite.audio.long_audio import Segment
    >>> seconds = {"short.wav": 3.0, "long.wav": 10.0, "middle.wav": 9.0}
    >>> plans = {key: ClipPlan(Segment(key, 0.0, s), 1, s, s, cut=None) for key, s in seconds.items()}
    >>> make_batches(plans, batch_seconds=20)
    [['long.wav', 'middle.wav'], ['short.wav']]
    """
    batches: list[list[str]] = []
    longest, chunks = 0.0, 0
    for key in sorted(plans, key=lambda key: -plans[key].chunk_seconds):
        chunks += plans[key].chunks
        if not batches or chunks * longest > batch_seconds:
            batches.append([])
            longest, chunks = plans[key].chunk_seconds, plans[key].chunks
        batches[-1].append(key)
    return batches


class DecodedBatches(Dataset):
    """Item i is batch i: ({key: lengths of its chunks}, the samples of all chunks in a row, {key: reason of a reject}).

    All samples are in one tensor, since each tensor from a worker process takes a file descriptor.

    Parameters
    ----------
    plans : mapping
        Plan of each key.
    batches : list of list of str
        Keys of each batch.
    todo : set of str
        Keys to extract. The other keys of a batch are read too, for equal batches, unless no key of `todo` can be read.
    audio_root : Path
        Folder to which the audio paths are relative.
    rule : LongAudio
        Reads and divides clips.
    """

    def __init__(
        self,
        plans: Mapping[str, ClipPlan],
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
        clips, errors = self._read([key for key in keys if key in self.todo])
        if clips:
            clips |= self._read([key for key in keys if key not in self.todo])[0]
        clips = {key: clips[key] for key in keys if key in clips}
        lengths = {key: chunk_lengths for key, (_, chunk_lengths) in clips.items()}
        return lengths, torch.cat([torch.empty(0), *(samples for samples, _ in clips.values())]), errors

    def _read(self, keys: list[str]) -> tuple[dict[str, tuple[Tensor, list[int]]], dict[str, str]]:
        clips, errors = {}, {}
        for key in keys:
            try:
                clips[key] = self.rule.read(self.plans[key], self.audio_root)
            except ValueError as error:  # AudioError is one
                errors[key] = str(error)
        return clips, errors
