"""Text tokens of every row, counted once and stored next to the manifest; helpers for counts."""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.manifest_table import ManifestTable
from audiolm_lite.storage.cache import derived_file

_ROWS_AT_ONCE = 1000  # rows between two updates of the progress bar


def text_tokens(
    table: ManifestTable,
    numbers: np.ndarray,
    count: Callable[[dict[str, Any]], int],
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
) -> np.ndarray:
    """Count the text tokens of some rows of a manifest.

    Counts are stored in `.<manifest>.<hash>.tokens.npy` (int32, one per row, 0 if unknown). Several processes may fill
    the file at once: a number is written in one piece, and all processes write the same numbers.

    Parameters
    ----------
    table : ManifestTable
        The manifest.
    numbers : ndarray
        Row numbers [N], ascending.
    count : callable
        Tokens of a row without its audio.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that `count` uses. If it has no serialised form, rows are counted again each time.
    settings : dict
        Everything else that the counts depend on (JSON values).

    Returns
    -------
    ndarray
        [N] int32.

    Examples
    --------
    >>> from audiolm_lite.data.manifest import write_manifest
    >>> file = getfixture("tmp_path") / "test.jsonl"
    >>> row = {"id": "1", "audio": "a.wav", "task": "asr", "instruction": "Transcribe.", "target": "yes"}
    >>> write_manifest(file, [{**row, "dataset": "toy", "split": "test"}])
    1
    >>> tokenizer = transformers.ByT5Tokenizer()  # one token per byte, and one for the end
    >>> count = lambda row: len(tokenizer(row["target"]).input_ids)
    >>> text_tokens(ManifestTable(file), np.array([0]), count, tokenizer, settings={}).tolist()
    [4]
    """
    identity = tokenizer_identity(tokenizer)
    if identity is None:
        counts = np.zeros(len(table), dtype=np.int32)
    else:
        key = hashlib.blake2b(json.dumps([identity, settings]).encode(), digest_size=6).hexdigest()
        counts = _open_counts(table, key)
        known = numbers[counts[numbers] > 0]
        # A few rows are counted again, to notice a change of the code that builds prompts.
        if any(count(table[n]) != counts[n] for n in known[:: len(known) // 32 + 1].tolist()):
            counts[:] = 0
    unknown = numbers[counts[numbers] == 0]
    batches = [unknown[i : i + _ROWS_AT_ONCE] for i in range(0, len(unknown), _ROWS_AT_ONCE)]
    # Ranks that start at the same time begin at different batches, so that they divide the work.
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    begin = len(batches) * rank // ranks
    for batch in tqdm(batches[begin:] + batches[:begin], desc=f"tokens of {table.path.name}", unit="k", delay=5):
        for number in batch.tolist():
            if counts[number] == 0:
                counts[number] = count(table[number])
    return np.array(counts[numbers])


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash everything that decides how text becomes tokens; None for a tokenizer that cannot be serialised.

    Examples
    --------
    >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"yes": 0}))
    >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    >>> identity = tokenizer_identity(tokenizer)
    >>> tokenizer.add_tokens("no")
    1
    >>> tokenizer_identity(tokenizer) == identity
    False
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    kind = [type(tokenizer).__qualname__, transformers.__version__, tokenizers.__version__]
    further = [tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.blake2b(repr([kind, further, backend.to_str()]).encode(), digest_size=16).hexdigest()


def _open_counts(table: ManifestTable, key: str) -> np.ndarray:
    """Counts [rows of the table], memory-mapped: writing to the array writes the file, if that is permitted."""

    def is_valid(file: Path) -> bool:
        try:
            return np.load(file, mmap_mode="r").shape == (len(table),)
        except (OSError, ValueError):
            return False

    def make(file: Path) -> None:
        for old in file.parent.glob(f".{escape(table.path.name)}.*.tokens.npy"):
            if not old.name.startswith(f".{table.path.name}.{table.content[:12]}-"):
                old.unlink(missing_ok=True)  # of an earlier content of the manifest
        with file.open("wb") as out:  # np.save would append .npy to the name
            np.save(out, np.zeros(len(table), dtype=np.int32))

    file = derived_file(table.path, f".{table.content[:12]}-{key}.tokens.npy", is_valid, make)
    if len(table) == 0:
        return np.zeros(0, dtype=np.int32)
    try:
        return np.load(file, mmap_mode="r+")
    except PermissionError:
        return np.load(file, mmap_mode="c")  # another user's file: unknown rows are counted for this run only


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, given that all smaller numbers fit too.

    Examples
    --------
    >>> largest(lambda frames: frames // 2 <= 3, most=100)
    7
    """
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))


def map_distinct(function: Callable[[int], int], values: np.ndarray) -> np.ndarray:
    """Apply a function to each of the values [N], with one call for equal values.

    Examples
    --------
    >>> map_distinct(lambda frames: frames // 2, np.array([9, 4, 9])).tolist()
    [4, 2, 4]
    """
    distinct, positions = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in distinct.tolist()], dtype=np.int64)[positions]
