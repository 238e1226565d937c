"""Pack the audio of a manifest into tar shards: python -m data_prep.tar MANIFEST OUT --shards N

OUT gets audio_0.tar ... audio_<N-1>.tar with the audio files as they are, manifest.jsonl for this project, whose audio
paths lead into the shards (audio_0.tar/00000012.flac), and tarred_audio_manifest.json for NeMo. The same command after
an interruption goes on with the shards that are not finished. Clips are dealt out to the shards at random (--seed), so
that reading one shard after another is close to random order.

Rows whose audio cannot be read are set aside in OUT/rejected.jsonl. Exit status: 0 all rows were packed; 3 some were
set aside; 1 more than --max_rejects were, or something else went wrong, and there are no manifests.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError, audio_duration
from audiolm_lite.audio.tar_members import open_member
from audiolm_lite.data.manifest import ManifestError, audio_path, write_manifest
from data_prep.formats import FormatError, Report, Row, atomic_file, load_format, to_json


def pack(manifest: Path, folder: Path, shards: int, seed: int = 0, max_rejects: float = 0.01) -> Report:
    """Write shards and manifests.

    Parameters
    ----------
    manifest : Path
        JSON lines; held in memory as a whole.
    folder : Path
        Where shards and manifests go. A member of a shard is called by the number of its clip in the manifest; the rows
        keep its former path in `packed_from`. All rows of one clip are in one shard, which holds the whole file once,
        whatever segments they are.
    shards : int
        How many; at most one a clip.
    seed : int
        Of the clips' order.
    max_rejects : float
        Share of the rows that may be set aside.

    Returns
    -------
    Report
        What happened.

    Raises
    ------
    FormatError
        The folder holds shards of something else, there are more shards than clips, or too much was set aside.
    """
    report = Report()
    clips: dict[str, list[Row]] = defaultdict(list)
    for row in load_format("manifest").read(manifest, report):
        clips[row["audio"]].append(row)
    if not 1 <= shards <= len(clips):
        raise FormatError(f"{shards} shards for the {len(clips)} clips of {manifest}; choose 1 to {len(clips)}")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    _claim(folder, {"manifest_sha256": digest, "shards": shards, "seed": seed})

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
            f"{len(report.rejected)} of {report.read} rows were set aside, more than max_rejects {max_rejects:g}; "
            f"see {folder / 'rejected.jsonl'}. The first: {report.rejected[0]['reason']}"
        )
    load_format("nemo").write(packed, folder / "tarred_audio_manifest.json", report)
    write_manifest(folder / "manifest.jsonl", packed)
    return report


def _claim(folder: Path, plan: dict) -> None:
    """Note what the folder's shards are of; raises FormatError if they are of something else."""
    file = folder / "plan.json"
    if not file.exists():
        if any(folder.glob("audio_*.tar")):
            raise FormatError(f"{folder} holds shards, but no plan.json that says of what; choose another folder")
        with atomic_file(file) as lines:
            lines.write(to_json(plan) + "\n")
    elif (there := json.loads(file.read_bytes())) != plan:
        differing = ", ".join(name for name in plan if there.get(name) != plan[name])
        raise FormatError(f"{folder} holds shards with another {differing}; remove it, or choose another folder")


def _ending(audio: str) -> str:
    """Ending of the file's name, by which WebDataset and NeMo know the format."""
    ending = Path(audio).suffix.lower()
    return ending if re.fullmatch(r"\.[a-z0-9]+", ending) else ".audio"


def _write_shard(file: Path, members: dict[str, str], manifest: Path) -> dict[str, str]:
    """Write a shard unless it is there; returns the members that it lacks, with the reason."""
    stored = _stored(file)
    if stored is not None:
        again = f"could not be read when {file.name} was written; remove that shard to try again"
        return {member: f"{audio}: {again}" for member, audio in members.items() if member not in stored}
    missing = {}
    unfinished = file.with_name(file.name + ".tmp")
    with unfinished.open("wb") as stream:
        with _import_webdataset().TarWriter(stream, encoder=False, mtime=0) as writer:
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
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    return missing


def _import_webdataset() -> ModuleType:
    """Return the library webdataset, which is not installed by default; raises ImportError with the remedy."""
    try:
        import webdataset
    except ImportError as error:
        raise ImportError('writing tar shards needs webdataset; run: pip install "audiolm_lite[data]"') from error
    return webdataset


def _stored(file: Path) -> set[str] | None:
    """Names of a shard's members; None where it is not there or is damaged, so that it is written (again)."""
    if not file.exists():
        return None
    try:
        with tarfile.open(file, "r:") as tar:
            return set(tar.getnames())
    except tarfile.TarError as error:
        print(f"{file} is damaged ({error}) and is written again", file=sys.stderr)
        return None


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.tar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path)
    parser.add_argument("folder", metavar="OUT", type=Path)
    parser.add_argument("--shards", type=int, required=True, help="number of shards; about 1 GB each reads well")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the clips; default: %(default)s")
    parser.add_argument(
        "--max_rejects", type=float, default=0.01, help="share of the rows that may be set aside; default: %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        report = pack(args.manifest, args.folder, args.shards, args.seed, args.max_rejects)
    except (FormatError, ManifestError) as error:
        print(f"tar: {error}", file=sys.stderr)
        return 1
    print(f"rows read      {report.read}")
    print(f"rows packed    {report.written}")
    listed = f", see {args.folder / 'rejected.jsonl'}" if report.rejected else ""
    print(f"rows rejected  {len(report.rejected)}{listed}")
    return 3 if report.rejected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
