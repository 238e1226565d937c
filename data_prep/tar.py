"""Pack the audio of a manifest into tar shards.

Writes OUT/audio_0.tar ... OUT/audio_<N-1>.tar with the unchanged audio files, manifest.jsonl for this project, whose
audio paths are members of the shards (audio_0.tar/00000012.flac), and tarred_audio_manifest.json for NeMo. After an
interruption, the same command continues with the unfinished shards. Clips are assigned to shards at random (--seed), so
that reading one shard after the other is close to a random order.

Rows whose audio cannot be read are listed in OUT/rejected.jsonl. Exit status: 0 all rows were packed; 3 some were
rejected; 1 more than --max_rejects were rejected, or another error, and no manifest was written.
"""

import argparse
import json
import re
import sys
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, audio_duration
from audiolm_lite.audio.tar_members import open_member
from audiolm_lite.config.errors import run_command
from audiolm_lite.data.manifest import audio_path, write_manifest
from audiolm_lite.storage.atomic import atomic_path, write_json
from audiolm_lite.storage.hashes import sha256_of
from data_prep.formats import FormatError, Report, Row, load_format


def pack(manifest: Path, folder: Path, shards: int, seed: int = 0, max_rejects: float = 0.01) -> Report:
    """Write shards and manifests.

    Parameters
    ----------
    manifest : Path
        JSON lines; all rows are kept in memory.
    folder : Path
        Folder for shards and manifests. The name of a member is the number of its clip in the manifest; `packed_from`
        of the rows is the former path. All rows of a file are in one shard, which contains the file once, also if the
        rows are segments of it.
    shards : int
        Number of shards, at most one per clip.
    seed : int
        Seed of the clips' order.
    max_rejects : float
        Share of the rows that may be rejected.

    Returns
    -------
    Report
        Counts and rejected rows.

    Raises
    ------
    FormatError
        The folder has shards of another manifest or with other settings, there are more shards than clips, or too many
        rows were rejected.
    ManifestError
        The manifest cannot be read.
    """
    report = Report()
    clips: dict[str, list[Row]] = defaultdict(list)
    for row in load_format("manifest").read(manifest, report):
        clips[row["audio"]].append(row)
    if not 1 <= shards <= len(clips):
        raise FormatError(f"{shards} shards for the {len(clips)} clips of {manifest}; choose 1 to {len(clips)}")
    _claim(folder, {"manifest_sha256": sha256_of(manifest), "shards": shards, "seed": seed})

    order, audios = np.random.default_rng(seed).permutation(len(clips)), list(clips)
    packed: list[Row] = []
    for shard in tqdm(range(shards), desc="shards", unit=" shards", disable=None):
        numbers = order[len(order) * shard // shards : len(order) * (shard + 1) // shards]
        members = {f"{number:08d}{_ending(audios[number])}": audios[number] for number in numbers}
        missing = _write_shard(folder / f"audio_{shard}.tar", members, manifest)
        for member, audio in members.items():
            if member in missing:
                for row in clips[audio]:
                    report.reject("id", row["id"], missing[member])
            else:
                further = {"audio": f"audio_{shard}.tar/{member}", "shard_id": shard, "packed_from": audio}
                packed += [{**row, **further} for row in clips[audio]]

    report.write_rejected(folder / "rejected.jsonl")
    if len(report.rejected) > max_rejects * report.read:
        raise FormatError(
            f"{len(report.rejected)} of {report.read} rows were rejected, more than max_rejects {max_rejects:g}; "
            f"see {folder / 'rejected.jsonl'}. The first: {report.rejected[0]['reason']}"
        )
    load_format("nemo").write(packed, folder / "tarred_audio_manifest.json", report)
    write_manifest(folder / "manifest.jsonl", packed)
    return report


def _claim(folder: Path, plan: dict) -> None:
    """Write the folder's plan.json; raises FormatError if the folder has shards of another plan."""
    file = folder / "plan.json"
    if not file.exists():
        if any(folder.glob("audio_*.tar")):
            raise FormatError(f"{folder} has shards, but no plan.json with their source; choose another folder")
        write_json(file, plan, indent=None)
    elif (stored := json.loads(file.read_bytes())) != plan:
        differing = ", ".join(name for name in plan if stored.get(name) != plan[name])
        raise FormatError(f"{folder} has shards with another {differing}; remove it, or choose another folder")


def _ending(audio: str) -> str:
    """Extension of the file's name, by which WebDataset and NeMo recognize the format."""
    ending = Path(audio).suffix.lower()
    return ending if re.fullmatch(r"\.[a-z0-9]+", ending) else ".audio"


def _write_shard(file: Path, members: dict[str, str], manifest: Path) -> dict[str, str]:
    """Write a shard unless it exists; returns the members that it lacks, with the reasons."""
    stored = _stored(file)
    if stored is not None:
        again = f"could not be read when {file.name} was written; remove that shard to try again"
        return {member: f"{audio}: {again}" for member, audio in members.items() if member not in stored}
    missing = {}
    with (
        atomic_path(file, sync=True) as unfinished,
        unfinished.open("wb") as stream,
        _import_webdataset().TarWriter(stream, encoder=False, mtime=0) as writer,
    ):
        for member, audio in members.items():
            path = audio_path(manifest, {"audio": audio})
            try:
                audio_duration(path)
                inside = open_member(path)
                data = inside.read() if inside else path.read_bytes()
            except (AudioError, OSError) as error:
                missing[member] = str(error)
                continue
            key, _, ending = member.partition(".")
            writer.write({"__key__": key, ending: data})
    return missing


def _import_webdataset() -> ModuleType:
    """Return the library webdataset, which is not installed by default; raises FormatError if it is missing."""
    try:
        import webdataset
    except ImportError as error:
        raise FormatError('writing tar shards needs webdataset; run: pip install "audiolm_lite[data]"') from error
    return webdataset


def _stored(file: Path) -> set[str] | None:
    """Names of a shard's members; None if it does not exist or is damaged and must be written again."""
    if not file.exists():
        return None
    try:
        with tarfile.open(file, "r:") as tar:
            return set(tar.getnames())
    except tarfile.TarError as error:
        print(f"{file} is damaged ({error}); it is written again", file=sys.stderr)
        return None


def main(argv: Sequence[str]) -> int:
    """Run `MANIFEST OUT --shards N ...`; returns 3 if rows were rejected, otherwise 0. Errors are those of `pack`."""
    parser = argparse.ArgumentParser(
        prog="audiolm-lite tar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="JSON lines")
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder for shards and manifests")
    parser.add_argument("--shards", type=int, required=True, help="number of shards; about 1 GB each is a good size")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the clips; default: %(default)s")
    parser.add_argument(
        "--max_rejects", type=float, default=0.01, help="share of the rows that may be rejected; default: %(default)s"
    )
    args = parser.parse_args(argv)
    report = pack(args.manifest, args.folder, args.shards, args.seed, args.max_rejects)
    print(f"rows read      {report.read}")
    print(f"rows packed    {report.written}")
    location = f", see {args.folder / 'rejected.jsonl'}" if report.rejected else ""
    print(f"rows rejected  {len(report.rejected)}{location}")
    return 3 if report.rejected else 0


if __name__ == "__main__":
    run_command(main)
