"""Where files go that are made or fetched once and used by many runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of such files: AUDIOLM_LITE_CACHE, else audiolm_lite in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("AUDIOLM_LITE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audiolm_lite"
