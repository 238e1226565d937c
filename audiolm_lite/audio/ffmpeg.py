"""Decoding of what libsndfile cannot decode, by the program ffmpeg where it is installed."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

import soundfile

from audiolm_lite.audio.errors import AudioError, source_name


def decode_with_ffmpeg(source: Path | BinaryIO, kind: str) -> soundfile.SoundFile:
    """Decode to a temporary file and open that; it is deleted when it is closed.

    Parameters
    ----------
    source : Path or binary file
        The encoded audio.
    kind : str
        What it is and why libsndfile cannot read it, for messages: "MPEG-4 audio, which ...".

    Raises
    ------
    AudioError
        ffmpeg is not installed, cannot decode the file, or finds no sample in it.
    """
    program, name = shutil.which("ffmpeg"), source_name(source)
    if program is None:
        target = os.path.splitext(name)[0] + ".flac"
        command = f"ffmpeg -i {shlex.quote(name)} -ar 16000 -ac 1 {shlex.quote(target)}"
        raise AudioError(source, f"is {kind}; install ffmpeg, or convert it: {command}")
    with tempfile.TemporaryDirectory() as folder:
        encoded, decoded = Path(folder) / "encoded", Path(folder) / "decoded.w64"
        if isinstance(source, Path):
            encoded = source.resolve()
        else:
            source.seek(0)
            encoded.write_bytes(source.read())
        # `file:` and the whitelist: neither a file's name nor a playlist in it may make ffmpeg open anything else.
        options = ["-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file"]
        conversion = ["-i", f"file:{encoded}", "-map", "0:a:0", "-c:a", "pcm_f32le", f"file:{decoded}"]
        done = subprocess.run([program, *options, *conversion], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode or not decoded.exists():
            message = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise AudioError(source, f"is {kind}, and ffmpeg cannot decode it ({message}); download the file again")
        file = soundfile.SoundFile(str(decoded))
    if file.frames <= 0:
        file.close()
        raise AudioError(source, "contains no audio; delete it or record it again")
    return file
