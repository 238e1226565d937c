"""Text tokens of every row, counted once and kept beside the manifest's table; small helpers for counts."""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable
from glob import escape
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.storage.cache import derived_file

_PORTION = 1000  # rows counted at once


def text_tokens(
    table: ManifestTable,
    numbers: np.ndarray,
    count: Callable[[dict], int],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict,
) -> np.ndarray:
    """Text tokens of some rows of a table.

    What has been counted is kept in `.<manifest>.<hash>.tokens.npy` (int32, one a row, 0 where it is not known), which
    several processes may fill at once: each number is written whole, and all would write the same.

    Parameters
    ----------
    table : ManifestTable
    numbers : ndarray
        Rows [N], ascending.
    count : callable
        Tokens of a row (dict), without its audio.
    tokenizer : PreTrainedTokenizerBase
        What `count` uses; with one that has no serialised form, rows are counted anew each time.
    settings : dict
        All else that the counts depend on (JSON values).

    Returns
    -------
    ndarray
        [N] int32.
    """
    identity = tokenizer_identity(tokenizer)
    if identity is None:
        counts = np.zeros(len(table), dtype=np.int32)
    else:
        key = hashlib.blake2b(json.dumps([identity, settings]).encode(), digest_size=6).hexdigest()
        counts = _open_counts(table, key)
        known = numbers[counts[numbers] > 0]
        # A look at some of them notices another way of building prompts that no setting shows.
        if any(count(table[n]) != counts[n] for n in known[:: len(known) // 32 + 1].tolist()):
            counts[:] = 0
    unknown = numbers[counts[numbers] == 0]
    portions = [unknown[i : i + _PORTION] for i in range(0, len(unknown), _PORTION)]
    # Ranks that start together begin at different places, so that they share the work.
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    begin = len(portions) * rank // ranks
    for portion in tqdm(portions[begin:] + portions[:begin], desc=f"tokens of {table.path.name}", unit="k", delay=5):
        for number in portion.tolist():
            if counts[number] == 0:
                counts[number] = count(table[number])
    return np.array(counts[numbers])


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash of all that decides how text becomes tokens; None for a tokenizer that cannot be serialised."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        return None
    kind = [type(tokenizer).__qualname__, transformers.__version__, tokenizers.__version__]
    further = [tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.blake2b(repr([kind, further, backend.to_str()]).encode(), digest_size=16).hexdigest()


def _open_counts(table: ManifestTable, key: str) -> np.ndarray:
    """Counts [rows of the table], mapped so that writing to them writes the file, where it may be written."""

    def is_good(file: Path) -> bool:
        try:
            return np.load(file, mmap_mode="r").shape == (len(table),)
        except (OSError, ValueError):
            return False

    def make(file: Path) -> None:
        for old in file.parent.glob(f".{escape(table.path.name)}.*.tokens.npy"):
            if not old.name.startswith(f".{table.path.name}.{table.content[:12]}-"):
                old.unlink(missing_ok=True)  # of a manifest that is no more
        with file.open("wb") as out:  # np.save would append .npy to the name
            np.save(out, np.zeros(len(table), dtype=np.int32))

    file = derived_file(table.path, f".{table.content[:12]}-{key}.tokens.npy", is_good, make)
    if len(table) == 0:
        return np.zeros(0, dtype=np.int32)
    try:
        return np.load(file, mmap_mode="r+")
    except PermissionError:
        return np.load(file, mmap_mode="c")  # another user's: what is missing is counted for this run alone


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where all smaller ones do."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))


def map_distinct(function: Callable[[int], int], values: np.ndarray) -> np.ndarray:
    """`function` of each of the values [N], called once for all equal ones."""
    unique, places = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in unique.tolist()], dtype=np.int64)[places]
