"""Paths as files store them: with slashes, so that Linux, macOS and Windows read the same file."""

import os
from pathlib import Path


def relative_path(path: str | Path, folder: str | Path) -> str:
    """Path of a file from a folder, with slashes; on another drive of Windows, the absolute path.

    Both should be resolved: symbolic links are not followed.

    Examples
    --------
    >>> relative_path("/data/wav/1.flac", "/data/manifests")
    '../wav/1.flac'
    """
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        relative = os.fspath(path)
    return relative.replace(os.sep, "/")
