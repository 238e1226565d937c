"""Length of an MP3 file, counted from its frames: decoders guess it where the encoder did not record it."""

import os
from typing import BinaryIO

# The largest number of samples in a frame. Encoders and decoders differ by up to one frame at either end of a file.
FRAME_SAMPLES = 1152
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
# Bytes that are searched for the first frame, and consecutive frames that cannot be a coincidence.
_SEARCHED_BYTES, _CONSECUTIVE = 1 << 16, 3


def count_samples(stream: BinaryIO) -> int | None:
    """Count the samples per channel of an MPEG audio file from the headers of its frames.

    A decoder estimates the length of a file without a length tag from the first frame, which is far off where bitrates
    vary.

    Parameters
    ----------
    stream : binary file
        Read from its beginning, whatever its position.

    Returns
    -------
    int or None
        None if a tag records the length, or if the frames do not continue to the end of the file.

    Raises
    ------
    ValueError
        There are no three consecutive frames near the beginning. (Decoders find single "frames" in any noise.)

    Examples
    --------
    >>> import io
    >>> frame = bytes.fromhex("fffb9000") + bytes(413)  # MPEG 1 layer 3 at 44.1 kHz and 128 kbit/s: 1152 samples
    >>> count_samples(io.BytesIO(10 * frame))
    11520
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start, head = 0, stream.read(10)
    if head.startswith(b"ID3") and len(head) == 10:
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    stream.seek(start)
    searched = stream.read(_SEARCHED_BYTES)
    offset = searched.find(0xFF)
    while offset >= 0 and not _frames_follow(stream, start + offset, size):
        offset = searched.find(0xFF, offset + 1)
    if offset < 0:
        raise ValueError("no consecutive MPEG audio frames near its beginning")
    if any(tag in searched[offset : offset + 200] for tag in _LENGTH_TAGS):
        return None
    position, samples = start + offset, 0
    while (frame := _frame_at(stream, position)) is not None:
        frame_bytes, frame_samples = frame
        position, samples = position + frame_bytes, samples + frame_samples
    # A truncated frame or a tag at the end of the file (ID3v1: 128 bytes) may be left.
    return samples if size - position < 4096 else None


def _frames_follow(stream: BinaryIO, position: int, size: int) -> bool:
    for number in range(_CONSECUTIVE):
        frame = _frame_at(stream, position)
        if frame is None:
            return number > 0 and position >= size - 128  # a file of one or two frames, and perhaps a tag
        position += frame[0]
    return True


def _frame_at(stream: BinaryIO, position: int) -> tuple[int, int] | None:
    """Return the bytes and samples of the frame with a header at `position`, None without one."""
    stream.seek(position)
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
