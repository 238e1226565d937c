"""Hashes of files: SHA-256 to identify content, CRC-32 to detect accidental damage.

One core of a laptop computes the CRC-32 of 3 GB/s, several times the speed of SHA-256.
"""

import hashlib
import zlib
from pathlib import Path

BLOCK_BYTES = 1 << 20


def sha256_of(*files: str | Path) -> str:
    """Return the SHA-256 of one file's content, or of several concatenated, in hexadecimal digits.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "a.txt"
    >>> _ = file.write_text("audio")
    >>> sha256_of(file)[:8]
    '6ed8919c'
    """
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def crc32_of(path: str | Path) -> int:
    """Return the CRC-32 of a file's content as an unsigned 32-bit integer.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "a.txt"
    >>> _ = file.write_text("audio")
    >>> crc32_of(file)
    410859157
    """
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value
