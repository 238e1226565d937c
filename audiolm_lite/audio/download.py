"""Audio by its URL: downloaded to a temporary file, within limits of size and time."""

import http.client
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from audiolm_lite.audio.errors import AudioError

MAX_BYTES = 1 << 30
MAX_SECONDS = 300.0
# Seconds without an answer or any data; seconds of the complete download are MAX_SECONDS.
_SILENCE_SECONDS = 20.0
_BLOCK_BYTES = 1 << 16
SCHEMES = ("http", "https", "file")


class NamedFile:
    """An open binary file under another name, for messages.

    Parameters
    ----------
    stream : binary file
        Has `read`, `seek` and `tell`.
    name : str
        The name.

    Examples
    --------
    >>> import io
    >>> file = NamedFile(io.BytesIO(b"abc"), "upload")
    >>> file.name, file.read(2), file.tell()
    ('upload', b'ab', 2)
    """

    def __init__(self, stream: Any, name: str):
        self.stream, self.name = stream, name

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # not set yet, while the object is copied
            raise AttributeError(name)
        return getattr(self.stream, name)


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path.

    Examples
    --------
    >>> is_url("https://example.org/a.wav"), is_url("clips/a.wav"), is_url("C:\\\\clips\\\\a.wav")
    (True, False, False)
    """
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.isascii() and scheme.replace("+", "").isalnum() and len(scheme) > 1


def open_url(url: str, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> Path | BinaryIO:
    """Open a URL: the path of file:///..., or a temporary file with the answer of a server, deleted when it is closed.

    Parameters
    ----------
    url : str
        http, https or file.
    max_bytes : int
        Largest file.
    max_seconds : float
        Longest time of the download.

    Raises
    ------
    AudioError
        Another scheme, an unknown host, an answer other than success, or more bytes or seconds than the limits.

    Examples
    --------
    >>> open_url("file:///data/a%20b.wav").as_posix()
    '/data/a b.wav'
    >>> open_url("ftp://example.org/a.wav")
    Traceback (most recent call last):
        ...
    audiolm_lite.audio.errors.AudioError: ftp://example.org/a.wav: scheme ftp is not supported; give a URL of http, ...
    """
    name = without_secrets(url)
    scheme = url.partition("://")[0].lower()
    if scheme == "file":
        return _local_path(url, name)
    if scheme not in SCHEMES:
        raise AudioError(name, f"scheme {scheme} is not supported; give a URL of http, https or file, or download it")
    try:
        return _download(url, name, max_bytes, time.monotonic() + max_seconds, max_seconds)
    except urllib.error.HTTPError as error:
        raise AudioError(name, f"the server answers {error.code} {error.reason}; check the URL") from error
    except TimeoutError as error:
        reason = f"no data for {_SILENCE_SECONDS:g} s; try again, or download it first"
        raise AudioError(name, reason) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise AudioError(name, f"cannot be downloaded ({cause}); check the URL and the connection") from error


def _download(url: str, name: str, max_bytes: int, end: float, max_seconds: float) -> BinaryIO:
    opener = urllib.request.build_opener(_WebOnly)
    request = urllib.request.Request(url, headers={"User-Agent": "audiolm_lite", "Accept": "audio/*, */*;q=0.5"})
    with opener.open(request, timeout=min(_SILENCE_SECONDS, max_seconds)) as answer:
        announced = int(answer.headers.get("Content-Length") or 0)
        file, size = tempfile.TemporaryFile(), 0  # noqa: SIM115  the caller closes it
        try:
            if announced > max_bytes:
                raise AudioError(name, _too_large(announced, max_bytes))
            while block := answer.read1(_BLOCK_BYTES):
                size += file.write(block)
                if size > max_bytes:
                    raise AudioError(name, _too_large(size, max_bytes))
                if time.monotonic() > end:
                    raise AudioError(name, f"not downloaded within {max_seconds:g} s ({size} bytes); download it first")
            if size < announced:
                reason = f"the connection ended after {size} of {announced} bytes; try again"
                raise AudioError(name, reason)
            _require_audio(name, answer.headers.get_content_type(), size)
        except BaseException:
            file.close()
            raise
    return NamedFile(file, name)  # type: ignore[return-value]  # has what readers of audio use


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirections to http and https only: a server must not name a file of this machine."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {without_secrets(url)}, which is no address of the web")
        return super().redirect_request(request, file, code, message, headers, url)


def _require_audio(name: str, content_type: str, size: int) -> None:
    if size == 0:
        raise AudioError(name, "the server answers with an empty file; check the URL")
    if content_type in ("text/html", "application/xhtml+xml"):
        reason = "is a web page (text/html), not audio; give the URL of the file itself (its download link)"
        raise AudioError(name, reason)


def _too_large(size: int, limit: int) -> str:
    return f"is larger than {limit / 2**20:g} MiB ({size / 2**20:.0f} MiB or more); download it and give its path"


def _local_path(url: str, name: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise AudioError(name, f"names a file on the machine {parts.netloc}; write file:///path for a local file")
    return Path(urllib.request.url2pathname(parts.path))


def without_secrets(path: str) -> str:
    """URL without user, password, query and fragment, which may hold keys: messages end up in logs. Paths stay.

    Examples
    --------
    >>> without_secrets("https://me:secret@example.org/a.wav?key=1"), without_secrets("what?.wav")
    ('https://example.org/a.wav', 'what?.wav')
    """
    if not is_url(path):
        return path
    try:
        parts = urlsplit(path)
    except ValueError:
        return path.partition("?")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
