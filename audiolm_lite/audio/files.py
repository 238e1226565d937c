"""Opening audio files: what libsndfile reads, checked where it would pass a damaged file; the rest through ffmpeg."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import unicodedata
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import soundfile

from audiolm_lite.audio.mp3 import samples_by_frames
from audiolm_lite.audio.tar_members import open_member
from audiolm_lite.config.errors import UserError

# Samples without a header, as Korean corpora publish them (KsponSpeech): nothing in such a file tells its format.
_HEADERLESS = {"samplerate": 16000, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
# (offset, bytes there) of formats that libsndfile has no decoder for; it might take AAC for MP3.
_FOREIGN = {
    (4, b"ftyp"): "MPEG-4 audio (m4a, mp4)",
    (0, b"\xff\xf1"): "AAC",
    (0, b"\xff\xf9"): "AAC",
    (0, b"\x1aE\xdf\xa3"): "WebM or Matroska",
    (0, b"0&\xb2u\x8ef\xcf\x11"): "Windows Media",
    (0, b"#!AMR"): "AMR",
    (0, b"wvpk"): "WavPack",
    (0, b"MAC "): "Monkey's Audio",
    (0, b"ajkg"): "Shorten",
    (0, b"\x0b\x77"): "AC-3",
    (0, b".RMF"): "RealMedia",
}
# Sizes that programs write which do not know yet how long the audio will be, give or take the header.
_UNKNOWN_SIZES = (0x7FFFF000, 0x80000000, 0x100000000)
# An MP3 frame holds this many samples at most; encoders and decoders disagree by one at either end.
MP3_FRAME = 1152
_RATES = range(1000, 768001)


class AudioError(UserError, ValueError):
    """An audio file that cannot be used.

    Attributes
    ----------
    path : str
        The file.
    reason : str
        What is wrong with it and what to do.
    """

    def __init__(self, path: str | Path | BinaryIO, reason: str):
        name = str(path if isinstance(path, str | Path) else path.name)
        super().__init__(name, reason)  # both in args, so that it survives the way out of a worker process
        self.path, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _SoundFile(soundfile.SoundFile):
    """Without the seek that soundfile adds to every read: in MP3 of varying bitrate it loses the place."""

    def seekable(self) -> bool:
        return self.format != "MP3" and super().seekable()


def open_audio(source: str | Path | BinaryIO) -> soundfile.SoundFile:
    """Open a file whose header agrees with what is there.

    Parameters
    ----------
    source : str, Path or binary file
        The file, which may lie in a tar file (`shard.tar/clip.flac`); a file object needs `name`, `read` and `seek`.

    Returns
    -------
    SoundFile
        At its first sample. Formats foreign to libsndfile are decoded to a temporary file by the program ffmpeg, where
        it is installed.

    Raises
    ------
    AudioError
        No such file, not audio, cut off, damaged, or nothing here reads it; names the remedy.
    """
    if isinstance(source, str | Path):
        source = _member(Path(source)) or Path(source)
    try:
        with _open_bytes(source) if isinstance(source, Path) else nullcontext(source) as stream:
            head = stream.read(1024)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
    except OSError as error:
        raise AudioError(source, f"cannot be read ({error.strerror}); check the disk, or fetch it again") from error
    if size == 0:
        raise AudioError(source, "not readable as audio: it is empty (0 bytes); fetch it again")
    for (offset, pattern), name in _FOREIGN.items():
        if head[offset:].startswith(pattern):
            return _through_ffmpeg(source, f"{name}, which libsndfile does not decode")
    try:
        options = _HEADERLESS if _is_headerless(source, head) else {}
        file = _SoundFile(str(source) if isinstance(source, Path) else source, **options)
    except UnicodeEncodeError as error:
        raise AudioError(source, "its name is not valid Unicode; rename it") from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw, which needs a rate
        reason = f"not readable as audio ({error}); convert it to WAV or FLAC, or fetch it again"
        raise AudioError(source, reason) from error
    try:
        if file.format == "RAW" and not options:  # by endings such as .au and .vox, libsndfile guesses
            raise AudioError(source, "not readable as audio (no header); convert it to WAV or FLAC, or fetch it again")
        _require_sound(source, file, head)
        if file.frames > 1 << 60:
            return _through_ffmpeg(source, f"{file.format} whose header does not say how long it is")
        if file.format == "MP3":
            samples = _samples_of_mp3(source)
            if samples is not None and abs(samples - file.frames) > 2 * MP3_FRAME:
                true, read = samples / file.samplerate, file.frames / file.samplerate
                why = f"MP3 of varying bitrate without a length tag: libsndfile takes {true:.2f} s for {read:.2f} s"
                return _through_ffmpeg(source, why)
    except AudioError:
        file.close()
        raise
    return file


def _member(path: Path) -> BinaryIO | None:
    try:
        return open_member(path)
    except OSError as error:
        raise AudioError(path, error.strerror or str(error)) from error


def _open_bytes(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise AudioError(path, _why_missing(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = f"cannot be found ({getattr(error, 'strerror', None) or error}); correct the path or who may enter"
        raise AudioError(path, reason) from error
    if stat.S_ISDIR(mode):
        raise AudioError(path, "is a directory; name an audio file")
    if not stat.S_ISREG(mode):
        raise AudioError(path, "is a pipe, socket or device; name an audio file")  # reading might wait for ever
    try:
        return path.open("rb")
    except OSError as error:
        raise AudioError(path, f"cannot be opened ({error.strerror}); check who may read it") from error


def _why_missing(path: Path) -> str:
    if path.is_symlink():
        return f"broken link: no such file {os.readlink(path)}; mount or correct what it points to"
    for form in ("NFC", "NFD"):
        if Path(unicodedata.normalize(form, str(path))).exists():
            return f"no such file, but one whose name is written in Unicode form {form}; write the name in that form"
    return "no such file; check the path and the folder it is relative to"


def _is_headerless(source: Path | BinaryIO, head: bytes) -> bool:
    """Whether a file is bare samples: named .pcm, and not a WAV under that name.

    KsponSpeech is published with files of an odd number of bytes; the last one, half a sample, is not read.
    """
    return Path(source.name).suffix.lower() == ".pcm" and not head.startswith(b"RIFF")


def _samples_of_mp3(source: Path | BinaryIO) -> int | None:
    try:
        if isinstance(source, Path):
            with source.open("rb") as stream:
                return samples_by_frames(stream)
        place = source.tell()  # libsndfile goes on reading from there
        try:
            return samples_by_frames(source)
        finally:
            source.seek(place)
    except ValueError as error:
        raise AudioError(source, f"not readable as audio ({error}); fetch it again") from error


def _require_sound(source: Path | BinaryIO, file: soundfile.SoundFile, head: bytes) -> None:
    """Raise AudioError for what libsndfile opens without a word but reads short or wrong."""
    log = file.extra_info
    if re.search("end-of-stream", log, re.IGNORECASE):  # mentioned where it is missing
        raise AudioError(source, "cut off or damaged: pages of the Ogg stream are missing; fetch the file again")
    if file.frames <= 0:
        raise AudioError(source, "holds no audio; remove it or make it again")
    if file.samplerate not in _RATES:
        raise AudioError(source, f"sample rate {file.samplerate} Hz: the header is damaged; fetch the file again")
    # libsndfile shortens a file whose header announces more than there is, and says so in its log alone.
    for match in re.finditer(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", log, re.M):
        announced, there = map(int, match.groups())
        unknown = any(abs(announced - size) <= 64 for size in _UNKNOWN_SIZES)
        if announced > there + 1 and not unknown:  # one byte of padding may be counted
            raise AudioError(source, f"cut off: {there} of the {announced} bytes that its header announces are there; "
                             "fetch the file again")  # fmt: skip
    count = re.search(rb"sample_count -i (\d+)", head) if head.startswith(b"NIST") else None
    if count and int(count[1]) > file.frames:
        raise AudioError(source, f"cut off: {file.frames} of the {int(count[1])} samples that its header announces are "
                         "there; fetch the file again")  # fmt: skip


def _through_ffmpeg(source: Path | BinaryIO, why: str) -> soundfile.SoundFile:
    """Decode with ffmpeg to a file that is gone when it is closed; raises AudioError with `why` where there is none."""
    program = shutil.which("ffmpeg")
    name = str(source if isinstance(source, Path) else source.name)
    if program is None:
        command = f"ffmpeg -i {shlex.quote(name)} -ar 16000 -ac 1 {shlex.quote(os.path.splitext(name)[0] + '.flac')}"
        raise AudioError(source, f"is {why}; install ffmpeg, or convert it: {command}")
    with tempfile.TemporaryDirectory() as folder:
        # `file:` and the whitelist: a name or a playlist inside the file must not make ffmpeg fetch something else.
        decoded, encoded = Path(folder) / "decoded.w64", source
        if not isinstance(source, Path):
            encoded = Path(folder) / "encoded"
            source.seek(0)
            encoded.write_bytes(source.read())
        command = [program, "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file"]
        command += ["-i", f"file:{encoded.resolve()}", "-map", "0:a:0", "-c:a", "pcm_f32le", f"file:{decoded}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not decoded.exists():
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise AudioError(source, f"is {why}, and ffmpeg cannot decode it ({said}); fetch the file again")
        file = soundfile.SoundFile(str(decoded))
    if file.frames <= 0:
        file.close()
        raise AudioError(source, "holds no audio; remove it or make it again")
    return file
