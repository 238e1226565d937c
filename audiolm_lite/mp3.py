"""How long an MP3 is whose encoder left no length in it."""

import os
from typing import BinaryIO

# ISO/IEC 11172-3 and 13818-3, layer III: kbit/s of MPEG 1 and of MPEG 2 and 2.5; Hz of MPEG 1, halved and quartered.
_BITRATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BITRATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44100, 48000, 32000)
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")


def samples_of_untagged_mp3(stream: BinaryIO) -> int | None:
    """Samples a channel of an MP3 without a length tag, by walking over its frames.

    Decoders guess such a file's length from its first frame, which is far off where the bitrate varies.

    Parameters
    ----------
    stream : binary file
        Any file, at any place.

    Returns
    -------
    int or None
        None for a file with a length tag, one that is not MPEG layer III throughout, and anything that is no MP3.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(10)
    place = samples = 0
    if head.startswith(b"ID3") and len(head) == 10:
        place = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    while place + 4 <= size:
        stream.seek(place)
        frame = _frame(stream.read(4))
        if frame is None:
            break
        if samples == 0 and any(tag in stream.read(200) for tag in _LENGTH_TAGS):
            return None
        length, count = frame
        place, samples = place + length, samples + count
    # What is left at the end is a cut frame or a tag of the kind that stands there (ID3v1: 128 bytes).
    return samples if samples and size - place < 4096 else None


def _frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the layer III frame with this header of four bytes; None where it is none."""
    word = int.from_bytes(header, "big")
    version, bitrate, rate = word >> 19 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or word >> 17 & 3 != 1 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    kilobits = (_BITRATES_1 if first else _BITRATES_2)[bitrate]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if first else 72) * kilobits * 1000 // hertz + (word >> 9 & 1), 1152 if first else 576
