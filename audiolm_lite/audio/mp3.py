"""What decoders of MP3 guess wrong: whether a file is one at all, and how long it is where its encoder did not say."""

import os
from typing import BinaryIO

# ISO/IEC 11172-3 and 13818-3: kbit/s by (MPEG 1 or not, layer); Hz of MPEG 1, which 2 halves and 2.5 quarters.
_BITRATES = {
    (True, 1): (0, *range(32, 449, 32)),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BITRATES[False, 3] = _BITRATES[False, 2]
_RATES = (44100, 48000, 32000)
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
# Bytes in which the first frame is looked for, and frames in a row that are no accident.
_SEARCHED, _IN_A_ROW = 1 << 16, 3


def samples_by_frames(stream: BinaryIO) -> int | None:
    """Samples a channel of an MPEG audio file, by walking over its frames.

    Where a file has no length tag, decoders guess its length from the first frame, which is far off if bitrates vary.

    Parameters
    ----------
    stream : binary file
        Read from its beginning, wherever it stands.

    Returns
    -------
    int or None
        None where a tag holds the length, or the walk does not reach the end.

    Raises
    ------
    ValueError
        No three frames follow one another near the beginning: decoders find "frames" in any noise.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start, head = 0, stream.read(10)
    if head.startswith(b"ID3") and len(head) == 10:
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    stream.seek(start)
    searched = stream.read(_SEARCHED)
    place = 0
    while (place := searched.find(0xFF, place)) >= 0 and not _frames_follow(stream, start + place, size):
        place += 1
    if place < 0:
        raise ValueError("no MPEG audio frames follow one another near its beginning")
    if any(tag in searched[place : place + 200] for tag in _LENGTH_TAGS):
        return None
    place, samples = start + place, 0
    while (frame := _frame_at(stream, place)) is not None:
        place, samples = place + frame[0], samples + frame[1]
    # What is left at the end is a cut frame or a tag of the kind that stands there (ID3v1: 128 bytes).
    return samples if size - place < 4096 else None


def _frames_follow(stream: BinaryIO, place: int, size: int) -> bool:
    for number in range(_IN_A_ROW):
        frame = _frame_at(stream, place)
        if frame is None:
            return number > 0 and place >= size - 128  # a file of one or two frames, and maybe a tag
        place += frame[0]
    return True


def _frame_at(stream: BinaryIO, place: int) -> tuple[int, int] | None:
    """Bytes and samples of the frame whose header stands at `place`; None where none does."""
    stream.seek(place)
    word = int.from_bytes(stream.read(4), "big")
    version, layer, bitrate, rate = word >> 19 & 3, 4 - (word >> 17 & 3), word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first, padding = version == 3, word >> 9 & 1
    bits = 1000 * _BITRATES[first, layer][bitrate]
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return 4 * (12 * bits // hertz + padding), 384
    samples = 1152 if layer == 2 or first else 576
    return samples // 8 * bits // hertz + padding, samples
