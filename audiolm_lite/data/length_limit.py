"""The limit on an item's tokens, and how longer items are shortened."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from audiolm_lite.data.clip_sources import ClipSource
from audiolm_lite.data.lengths import largest
from audiolm_lite.data.selected_rows import DatasetError, SelectedRows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LengthLimit:
    """Most tokens of an item, and what happens to longer ones.

    Parameters
    ----------
    max_tokens : int, optional
        Most tokens, audio and text; no limit if None.
    shorten : str, optional
        What is truncated at its end: a field of the prompt template, such as "transcript", or "audio". "drop" leaves
        out the row. If None, a longer item is an error.

    Raises
    ------
    DatasetError
        `shorten` without `max_tokens`.
    """

    max_tokens: int | None = None
    shorten: str | None = None

    def __post_init__(self) -> None:
        if self.shorten is not None and self.max_tokens is None:
            raise DatasetError("dataset: shorten needs max_tokens; set it, or remove shorten.")

    def excess(self, rows: SelectedRows, lengths: np.ndarray) -> dict[int, int]:
        """Find the items that are too long, and log how many there are.

        Parameters
        ----------
        rows : SelectedRows
        lengths : ndarray
            Tokens [N] of each item.

        Returns
        -------
        dict
            Item -> tokens above the limit.

        Raises
        ------
        DatasetError
            There are such items, and `shorten` is None.
        """
        if self.max_tokens is None:
            return {}
        long = np.flatnonzero(lengths > self.max_tokens).tolist()
        excess = {index: int(lengths[index]) - self.max_tokens for index in long}
        if not excess:
            return {}
        if self.shorten is None:
            first = next(iter(excess))
            raise DatasetError(
                f"dataset: {len(excess)} rows have more than max_tokens {self.max_tokens}, the first is "
                f'"{rows[first]["id"]}" with {int(lengths[first])}; raise max_tokens, or set shorten to what is '
                "truncated: a field of the template, audio or drop."
            )
        results = {"drop": "they are left out", "audio": "their audio is truncated"}
        result = results.get(self.shorten, f'their field "{self.shorten}" is truncated')
        log.warning("%d of %d rows have more than %d tokens: %s", len(excess), len(rows), self.max_tokens, result)
        return excess

    def field_to_cut(self, excess: int) -> tuple[str, int]:
        """Return the argument `cut` of `PromptTemplate.encode` for an item that is too long by `excess` tokens."""
        return (self.shorten, excess) if excess and self.shorten not in (None, "audio") else ("", 0)


NO_LIMIT = LengthLimit()


def require_audio_to_cut(
    row: str, length: int, excess: int, source: ClipSource, num_tokens: Callable[[int], int]
) -> None:
    """Raise DatasetError if truncating the last clip of a row cannot remove `excess` audio tokens.

    A clip can be too short, and there are encoders and adapters with as many tokens for any clip.

    Parameters
    ----------
    row : str
        Id of the row.
    length : int
        Length of its last clip, in frames or samples.
    excess : int
        Tokens to remove.
    source : FeatureSource or WaveformSource
    num_tokens : callable
        Audio tokens from encoder frames.

    Examples
    --------
    >>> from audiolm_lite.data.clip_sources import WaveformSource
    >>> source = WaveformSource(lambda samples: samples // 320)
    >>> require_audio_to_cut("row-1", 9000, 3, source, num_tokens=lambda frames: frames // 2)
    >>> require_audio_to_cut("row-1", 9000, 3, source, num_tokens=lambda frames: 32)
    Traceback (most recent call last):
    audiolm_lite.data.selected_rows.DatasetError: dataset: row "row-1" is too long by 3 tokens and has ...
    """
    tokens = num_tokens(source.frames(length))
    try:
        kept = largest(lambda count: num_tokens(source.frames(count)) <= tokens - excess, length)
        enough = tokens > excess and kept > 0 and num_tokens(source.frames(kept)) > 0
    except ValueError:  # the encoder accepts no clip as short as that
        enough = False
    if not enough:
        raise DatasetError(
            f'dataset: row "{row}" is too long by {excess} tokens and has too little audio to truncate: its last clip '
            f"has {tokens} audio tokens, and no shorter one has {tokens - excess} or fewer; set shorten to a field of "
            "the template or drop, or raise max_tokens."
        )


def truncate_clip(clip: Tensor, tokens: int, source: ClipSource, num_tokens: Callable[[int], int]) -> Tensor:
    """Return the longest beginning of a clip that gives at most `tokens` audio tokens.

    Raises
    ------
    DatasetError
        Not one token would be left.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.data.clip_sources import WaveformSource
    >>> source = WaveformSource(lambda samples: samples // 320)
    >>> truncate_clip(torch.ones(9000), 3, source, num_tokens=lambda frames: frames // 2).shape
    torch.Size([2559])
    """
    if tokens < 1:
        raise DatasetError(
            "dataset: an item of more than max_tokens has too little audio to truncate; set shorten: drop"
        )
    dim = source.time_dim
    length = largest(lambda count: num_tokens(source.frames(count)) <= tokens, clip.shape[dim])
    return clip.narrow(dim, 0, length)
