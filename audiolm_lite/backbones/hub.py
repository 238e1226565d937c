"""Download of a backbone from the Hugging Face hub at a pinned revision, with the hash of every file compared."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from audiolm_lite.backbones.known import WEIGHTS, Hub
from audiolm_lite.backbones.licences import is_licence
from audiolm_lite.storage.hashes import sha256_of

TIMEOUT = 5.0  # seconds until the hub counts as unreachable
# Weights, configurations and tokenizers in transformers' format; no pickles, and no code. Licences are added.
FILES = (
    WEIGHTS,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


class Unavailable(Exception):
    """A source that cannot provide a backbone now; the message is the reason, for a list of all that were tried."""


def fetch_from_hub(hub: Hub, folder: Path, downloads: Path, announce: Callable[[str, float], None]) -> str:
    """Download the files of a repository; an interrupted download continues.

    Parameters
    ----------
    hub : Hub
        The repository.
    folder : Path
        Existing folder to write to.
    downloads : Path
        Folder for unfinished downloads; removed when it is no longer needed.
    announce : callable
        Gets the origin and the megabytes before the download starts.

    Returns
    -------
    str
        The origin in words.

    Raises
    ------
    Unavailable
        The hub is not reachable within 5 s, HF_HUB_OFFLINE is set, the download breaks off, or a file's hash is not
        the published one.
    """
    from huggingface_hub import constants, model_info, snapshot_download

    origin = f"the Hugging Face hub, {hub.repo} at revision {hub.revision[:12]}"
    if constants.HF_HUB_OFFLINE:
        raise Unavailable("HF_HUB_OFFLINE is set")
    try:
        info = model_info(hub.repo, revision=hub.revision, files_metadata=True, timeout=TIMEOUT)
        names = {file.rfilename for file in info.siblings or [] if "/" not in file.rfilename}
        names = {*FILES, *filter(is_licence, names)}
        files = {file.rfilename: file for file in info.siblings or [] if file.rfilename in names}
        announce(origin, sum(file.size or 0 for file in files.values()) / 1e6)
        snapshot_download(hub.repo, revision=hub.revision, allow_patterns=list(files), local_dir=downloads)
    except Exception as error:  # the exceptions of its client differ between versions (requests, httpx)
        raise Unavailable(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    for name, file in files.items():
        path = downloads / name
        # SHA-256 of a large file, else the identifier of a git blob. The pinned hash takes precedence.
        large = file.lfs is not None
        published = hub.weights_sha256 if name == WEIGHTS else file.lfs.sha256 if file.lfs else file.blob_id
        if (sha256_of(path) if large or name == WEIGHTS else _git_blob(path)) != published:
            shutil.rmtree(downloads)
            raise Unavailable(f"{name} does not have the published hash")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(downloads / name, folder / name)
    shutil.rmtree(downloads)
    return origin


def _git_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
