"""Opening an audio file: checked where libsndfile would accept a damaged file, by PyAV where it has no decoder."""

import os
import re
import stat
import unicodedata
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import soundfile

from audiolm_lite.audio.containers import ContainerAudio
from audiolm_lite.audio.errors import AudioError, AudioSource
from audiolm_lite.audio.mp3 import FRAME_SAMPLES, count_samples
from audiolm_lite.audio.samples import SampleArray
from audiolm_lite.audio.tar_members import open_member

# Samples without a header, as Korean corpora publish them (KsponSpeech): the file does not contain its format.
_HEADERLESS: dict[str, Any] = {
    "samplerate": 16000,
    "channels": 1,
    "format": "RAW",
    "subtype": "PCM_16",
    "endian": "LITTLE",
}
# (offset, bytes at that offset) of formats without a decoder in libsndfile, which might mistake AAC for MP3: FFmpeg's
# name of the container, and what it is.
_FOREIGN = {
    (4, b"ftyp"): ("mov", "MPEG-4 audio (m4a, mp4)"),
    (4, b"moov"): ("mov", "a QuickTime file"),
    (0, b"\xff\xf0"): ("aac", "AAC"),
    (0, b"\xff\xf1"): ("aac", "AAC"),
    (0, b"\xff\xf8"): ("aac", "AAC"),
    (0, b"\xff\xf9"): ("aac", "AAC"),
    (0, b"\x1aE\xdf\xa3"): ("matroska", "WebM or Matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11"): ("asf", "Windows Media"),
    (0, b"#!AMR"): ("amr", "AMR"),
    (0, b"wvpk"): ("wv", "WavPack"),
    (0, b"MAC "): ("ape", "Monkey's Audio"),
    (0, b"ajkg"): ("shn", "Shorten"),
    (0, b"\x0b\x77"): ("ac3", "AC-3"),
    (0, b".RMF"): ("rm", "RealMedia"),
    (0, b"FLV\x01"): ("flv", "Flash Video"),
    (8, b"AVI "): ("avi", "AVI"),
}
# Containers that libsndfile opens, and FFmpeg's names of them, for codecs in them that libsndfile lacks.
_SHARED = {b"OggS": "ogg", b"RIFF": "wav", b"caff": "caf"}
_HEAD_BYTES = 1024
# Sizes, up to the length of the header, that programs write before they know how long the audio will be.
_UNKNOWN_SIZES = (0x7FFFF000, 0x80000000, 0x100000000)
_RATES = range(1000, 768001)


class _SoundFile(soundfile.SoundFile):
    """Without the seek that soundfile adds to every read, which loses the position in MP3 of variable bitrate."""

    def seekable(self) -> bool:
        return self.format != "MP3" and super().seekable()


def open_audio(source: AudioSource) -> soundfile.SoundFile | ContainerAudio | SampleArray:
    """Open a file and check that its header agrees with its content.

    Parameters
    ----------
    source : str, Path, binary file or SampleArray
        The file, which may be in a tar file (`shard.tar/clip.flac`); a file object needs `name`, `read` and `seek`.

    Returns
    -------
    SoundFile, ContainerAudio or SampleArray
        At its first sample. What libsndfile cannot decode is decoded by FFmpeg's libraries, see `audio.containers`.

    Raises
    ------
    AudioError
        The file is missing, not audio, truncated or damaged, or nothing installed can decode it.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(path, [0.0] * 8000, 16000)
    >>> with open_audio(path) as file:
    ...     file.samplerate, file.frames, file.channels
    (16000, 8000, 1)
    """
    if isinstance(source, SampleArray):
        source.seek(0)
        return source
    if isinstance(source, str | Path):
        source = _open_member(Path(source)) or Path(source)
    head, size = _read_head(source)
    if size == 0:
        raise AudioError(source, "not readable as audio: it is empty (0 bytes); download the file again")
    headerless = _is_headerless(source, head)
    for (offset, mark), (demuxer, kind) in _FOREIGN.items():
        if not headerless and head[offset:].startswith(mark):
            return ContainerAudio(source, demuxer, kind)
    try:
        file = _open_with_libsndfile(source, headerless)
    except AudioError as error:
        return _open_other_codec(source, head, error)
    try:
        _check_header(source, file, head)
        wrong_length = _wrong_length(source, file)
    except AudioError:
        file.close()
        raise
    if wrong_length is not None:
        file.close()
        return ContainerAudio(source, file.format.lower(), wrong_length)
    return file


def _is_headerless(source: Path | BinaryIO, head: bytes) -> bool:
    """Whether a file is samples without a header, by its ending: samples may equal the mark of any other format.

    A .pcm with a header is a WAV file under that name; samples that begin with these eight bytes are not found by
    chance.
    """
    return Path(source.name).suffix.lower() == ".pcm" and (head[:4], head[8:12]) != (b"RIFF", b"WAVE")


def _open_other_codec(source: Path | BinaryIO, head: bytes, error: AudioError) -> ContainerAudio:
    """Open a container that libsndfile knows, with a codec that it lacks; raises `error` for any other file."""
    demuxer = _SHARED.get(head[:4])
    if demuxer is None or find_spec("av") is None or not isinstance(error.__cause__, soundfile.LibsndfileError):
        raise error
    try:
        return ContainerAudio(source, demuxer, f"{demuxer} audio")
    except AudioError:
        raise error from None


def _open_member(path: Path) -> BinaryIO | None:
    try:
        return open_member(path)
    except OSError as error:
        raise AudioError(path, error.strerror or str(error)) from error


def _read_head(source: Path | BinaryIO) -> tuple[bytes, int]:
    """Return the first bytes of a file and its size; an open file is then at its beginning."""
    try:
        with _open_regular_file(source) if isinstance(source, Path) else nullcontext(source) as stream:
            stream.seek(0)
            head = stream.read(_HEAD_BYTES)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
    except OSError as error:
        raise AudioError(source, f"cannot be read ({error.strerror}); check the disk, or download it again") from error
    return head, size


def _open_regular_file(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise AudioError(path, _why_missing(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise AudioError(path, f"cannot be found ({reason}); check the path and its permissions") from error
    if stat.S_ISDIR(mode):
        raise AudioError(path, "is a directory; name an audio file")
    if not stat.S_ISREG(mode):  # reading might wait for ever
        raise AudioError(path, "is a pipe, socket or device; name an audio file")
    try:
        return path.open("rb")
    except OSError as error:
        raise AudioError(path, f"cannot be opened ({error.strerror}); check its permissions") from error


def _why_missing(path: Path) -> str:
    if path.is_symlink():
        return f"broken link: no such file {os.readlink(path)}; mount its file system or correct the link"
    for form in ("NFC", "NFD"):
        if Path(unicodedata.normalize(form, str(path))).exists():
            return f"no such file, but one whose name is written in Unicode form {form}; use that form of the name"
    return "no such file; check the path and the folder it is relative to"


def _open_with_libsndfile(source: Path | BinaryIO, headerless: bool) -> _SoundFile:
    # KsponSpeech has .pcm files with an odd number of bytes; the last byte, half a sample, is not read.
    try:
        file = _SoundFile(str(source) if isinstance(source, Path) else source, **(_HEADERLESS if headerless else {}))
    except UnicodeEncodeError as error:
        raise AudioError(source, "its name is not valid Unicode; rename it") from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw, which needs a rate
        cause = getattr(error, "error_string", error)
        reason = f"not readable as audio ({cause}); convert it to WAV or FLAC, or download the file again"
        raise AudioError(source, reason) from error
    if file.format == "RAW" and not headerless:  # libsndfile guesses from suffixes such as .au and .vox
        file.close()
        reason = "not readable as audio (no header); convert it to WAV or FLAC, or download the file again"
        raise AudioError(source, reason)
    return file


def _check_header(source: Path | BinaryIO, file: soundfile.SoundFile, head: bytes) -> None:
    """Raise AudioError for faults in spite of which libsndfile opens a file, and reads too little or garbage."""
    log = file.extra_info
    if re.search("end-of-stream", log, re.IGNORECASE):  # mentioned only where it is missing
        raise AudioError(source, "truncated or damaged: pages of the Ogg stream are missing; download the file again")
    if file.frames <= 0:
        raise AudioError(source, "contains no audio; delete it or create it again")
    if file.samplerate not in _RATES:
        raise AudioError(source, f"sample rate {file.samplerate} Hz: the header is damaged; download the file again")
    # libsndfile shortens a file whose header announces more than it contains, and reports that only in its log.
    for match in re.finditer(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", log, re.M):
        announced, present = map(int, match.groups())
        unknown = any(abs(announced - size) <= 64 for size in _UNKNOWN_SIZES)
        if announced > present + 1 and not unknown:  # one byte of padding may be counted
            raise AudioError(source, f"truncated: it has {present} of the {announced} bytes that its header announces; "
                             "download the file again")  # fmt: skip
    count = re.search(rb"sample_count -i (\d+)", head) if head.startswith(b"NIST") else None
    if count and int(count[1]) > file.frames:
        raise AudioError(source, f"truncated: it has {file.frames} of the {int(count[1])} samples that its header "
                         "announces; download the file again")  # fmt: skip


def _wrong_length(source: Path | BinaryIO, file: soundfile.SoundFile) -> str | None:
    """Return what a file is whose length libsndfile does not know or guesses wrong; None for all others."""
    if file.frames > 1 << 60:
        return f"{file.format} whose header does not record its length"
    samples = _count_mp3_samples(source) if file.format == "MP3" else None
    if samples is None or abs(samples - file.frames) <= 2 * FRAME_SAMPLES:
        return None
    return "MP3 of variable bitrate without a length tag"


def _count_mp3_samples(source: Path | BinaryIO) -> int | None:
    try:
        if isinstance(source, Path):
            status = source.stat()
            return _count_samples_of_file(source, status.st_size, status.st_mtime_ns)
        position = source.tell()  # libsndfile reads on from this position
        try:
            return count_samples(source)
        finally:
            source.seek(position)
    except ValueError as error:
        raise AudioError(source, f"not readable as audio ({error}); download the file again") from error


@lru_cache(maxsize=1 << 16)
def _count_samples_of_file(path: Path, size: int, mtime_ns: int) -> int | None:
    """Count the samples of an MP3 in the state of this size and time once, as segments of long files are read often."""
    with path.open("rb") as stream:
        return count_samples(stream)
