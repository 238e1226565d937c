"""Write checked manifests, a list of rejected clips, and features from the clips of a corpus.

Clips are processed one at a time, so that millions of them need little memory:

    clips -> rows of good clips in preparation/<split>.jsonl -> features -> <split>.jsonl of the clips with features

Rejected clips are listed in rejected.jsonl, with the reason.
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from audiolm_lite.audio.reading import AudioError
from audiolm_lite.config.keys import LONG_AUDIO, Key
from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.distributed.partition import Partition, parse_partition
from audiolm_lite.distributed.processes import local_rank, wait_for_all_ranks
from audiolm_lite.features.extract import extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store_format import DTYPES
from audiolm_lite.storage.atomic import move
from audiolm_lite.storage.paths import relative_path
from data_prep.checks import Check, CheckedAudio, in_threads
from data_prep.clips import Clip, CorpusError
from data_prep.derived import write_derived
from data_prep.filters import Dropped, Filters
from data_prep.questions import questions
from data_prep.tables import format_table
from data_prep.text import normaliser

SPLITS = ("train", "valid", "test")

PREPARE_KEYS = {
    "seed": Key("Seed of held-out groups and of question wordings.", int),
    "corpus": Key("Reader of the corpus: !name:data_prep.corpora.<name>.read_<name>.", object, result=False),
    "output_folder": Key("Where manifests, features and rejected.jsonl go.", str, result=False),
    "valid_share": Key(
        "Share of training speakers or recordings held out; null: the split of the corpus.", float, None
    ),
    "wordings": Key(
        "Questions: varied, or miniasqa, the few that its LLM was trained on.", ("miniasqa", "varied"), "miniasqa"
    ),
    "text": Key("Steps of text normalisation for transcripts; audiolm-lite text --help lists them.", list, None),
    "filters": Key("Limits: {min_seconds, max_seconds, max_characters, max_silence, duplicates}.", dict, None),
    "encoder": Key("Audio encoder block whose features are stored; null writes manifests only.", dict, None),
    "feature_folder": Key("Feature store to write.", str, result=False),
    "feature_dtype": Key("Data type of the stored features.", tuple(DTYPES), "float16"),
    "long_audio": Key("Treatment of clips longer than the encoder's input.", LONG_AUDIO, "reject"),
    "batch_seconds": Key("Seconds of audio encoded at once.", float, 120.0, result=False),
    "num_workers": Key("Processes that decode audio in advance.", int, 2, result=False),
    "shard": Key("I/N: compute only the I-th of N parts of the features, without torchrun.", str, None, result=False),
    "max_rejects": Key(
        "Share of the clips that may have faults; if more have, preparation fails.", float, 0.01, result=False
    ),
}


def prepare(clips: Iterable[Clip], hparams: dict[str, Any], run_opts: dict[str, Any]) -> int:
    """Write train.jsonl, valid.jsonl, test.jsonl and, with an encoder, the features of all clips.

    Several processes can compute the features: the ranks of `torchrun`, of which rank 0 writes the manifests at the
    end, or commands with different values of `shard`, after which the same command without it writes the manifests.

    Every clip is in a manifest or, as {id, audio, reason}, in rejected.jsonl. Clips with faults count against
    `max_rejects`. Clips that a filter left out have a further field `filter` and do not count. Tables at the end give
    the hours of each split and task, and the number of rejected clips for each reason.

    After an interruption, the same command continues: files that have not changed are not checked again, stored
    features are not computed again, and a manifest is written completely or not at all.

    Parameters
    ----------
    clips : iterable of Clip
        The clips of the corpus; a generator is read once and not kept in memory.
    hparams : dict
        Values of PREPARE_KEYS.
    run_opts : dict
        `device`; `debug` keeps a few clips of each split.

    Returns
    -------
    int
        Exit status of the command: 0, or 3 if clips were rejected for faults.

    Raises
    ------
    CorpusError
        More than `max_rejects` of the clips have faults, or a split has no clips left. rejected.jsonl and the features
        are then complete, but no manifest is written, so that nobody trains on an incomplete corpus by mistake. The
        command with a larger `max_rejects` writes the manifests within seconds.
    """
    output = Path(hparams["output_folder"])
    partition = parse_partition(hparams.get("shard"))
    work = output / "preparation" / ("" if partition.finishes else f"share-{partition.rank + 1}")
    work.mkdir(parents=True, exist_ok=True)
    if run_opts.get("debug"):
        clips = _few(clips)
    with RejectedClips(work / "rejected.jsonl") as rejected:
        total = _check(clips, hparams, output, work, rejected)
        failed = {}
        if hparams["encoder"] is not None:
            if partition.world_size > 1 or not partition.finishes:
                _extract(partition, work, output, hparams, run_opts)
            if not partition.finishes:
                shutil.rmtree(work)
                return 0
            failed = _extract(Partition(0, 1, finishes=True), work, output, hparams, run_opts)
            _reject_without_features(failed, work, rejected)
    rejects_file = output / "rejected.jsonl"
    move(work / "rejected.jsonl", rejects_file)

    if rejected.reasons:
        lines = [[count, reason] for reason, count in rejected.reasons.most_common()]
        print(format_table(["clips", "rejected because"], lines))
    if rejected.test_clips:
        print(f"filters left out {rejected.test_clips} test clips: scores are not comparable with those on all clips")
    if rejected.faults > hparams["max_rejects"] * total:
        raise CorpusError(
            f"{rejected.faults} of {total} clips were rejected, more than max_rejects {hparams['max_rejects']:g} "
            f"allows; all are listed in {rejects_file}. Manifests are not written; repair the clips, or allow more "
            f"with --max_rejects. The first: {rejected.first_fault}"
        )
    count = rejected.reasons.total()
    empty = [split for split in SPLITS if next(_good_rows(work / f"{split}.jsonl", failed, {}), None) is None]
    if empty:
        raise CorpusError(
            f"no clip is left for split {', '.join(empty)}: the corpus has {total} clips, of which {count} were "
            f"rejected{f' (see {rejects_file})' if count else ''}. Manifests are not written; check the corpus, the "
            "filters and the shares of the splits."
        )
    _write_manifests(failed, output, work)
    location = f", see {rejects_file}" if count else ""
    print(f"rejected: {count} of {total} clips, {rejected.faults} for faults{location}")
    return 3 if rejected.faults else 0


class RejectedClips:
    """The list of clips that are in no manifest, and the number of clips for each reason.

    Parameters
    ----------
    file : Path
        Overwritten; one line {id, audio, reason} per clip, with `filter` if a filter left it out.

    Attributes
    ----------
    reasons : Counter
        Reasons, without the parts that differ between clips, and their numbers of clips.
    faults : int
        Number of clips that were not left out by a filter.
    first_fault : str
        Reason of the first of them.
    test_clips : int
        Number of test clips that a filter left out.
    """

    def __init__(self, file: Path):
        # File names that are not valid Unicode are written as JSON escapes.
        self._file = file.open("w", encoding="utf-8", errors="backslashreplace")
        self.reasons: Counter = Counter()
        self.faults, self.first_fault, self.test_clips = 0, "", 0

    def __enter__(self) -> "RejectedClips":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add_fault(self, id: str, audio: str, reason: str) -> None:
        """Add a clip that cannot be used."""
        self.faults += 1
        self.first_fault = self.first_fault or reason
        self._add({"id": id, "audio": audio, "reason": reason})

    def add_dropped(self, clip: Clip, dropped: Dropped) -> None:
        """Add a clip that a filter leaves out."""
        self.test_clips += clip.split == "test"
        entry = {"id": clip.id, "audio": str(clip.audio), "reason": dropped.reason, "filter": dropped.filter}
        self._add(entry)

    def _add(self, entry: dict[str, str]) -> None:
        _write_line(self._file, entry)
        # The path, numbers and the remedy differ between clips.
        kind = re.split(r"[;:(]", entry["reason"].split(f"{Path(entry['audio']).name}: ", 1)[-1])[0]
        self.reasons[re.sub(r"\d[\d.e+-]*", "…", kind).strip()] += 1


def _check(clips: Iterable[Clip], hparams: dict[str, Any], output: Path, work: Path, rejected: RejectedClips) -> int:
    """Write {id, audio, rows} of every good clip to work/<split>.jsonl; returns the number of all clips."""
    filters = Filters.from_config(hparams.get("filters"))
    normalise = normaliser(hparams.get("text") or [])
    # Extraction decodes all files. Without it they are decoded here, so that no fault is found only in training.
    decode = hparams["encoder"] is None or filters.max_silence is not None
    total = 0
    with ExitStack() as stack:
        files = {split: stack.enter_context((work / f"{split}.jsonl").open("w", encoding="utf-8")) for split in SPLITS}
        checked = stack.enter_context(CheckedAudio(work / "checks.sqlite", decode, filters.duplicates == "drop"))

        def check_audio(clip: Clip) -> Check | None:
            if clip.text == "":
                return None
            if clip.render is not None:
                write_derived(clip)
            return checked.check(clip.audio, clip.start, clip.duration, clip.channel)

        for clip, check in tqdm(in_threads(check_audio, clips), desc="clips", unit=" clips"):
            total += 1
            try:
                clip = _with_plain_text(clip, normalise)
                seconds = _checked_duration(clip, check.result, filters, checked)
                rows = _rows(clip, seconds, output, hparams)
                filters.check_characters(max((row["target"] for row in rows), key=len))
                _write_line(files[clip.split], {"id": clip.id, "audio": str(clip.audio), "rows": rows})
            except Dropped as dropped:
                rejected.add_dropped(clip, dropped)
            except (AudioError, CorpusError) as error:
                rejected.add_fault(clip.id, str(clip.audio), str(error))
            except UnicodeEncodeError as error:
                reason = f"name or text is not valid Unicode ({error.reason}); rename or correct it"
                rejected.add_fault(clip.id, str(clip.audio), f"{clip.audio}: {reason}")
    return total


def _with_plain_text(clip: Clip, normalise: Callable[[str], str]) -> Clip:
    """Normalise the transcript; raises Dropped if no text is left, as with transcripts of noises only."""
    if not clip.text:
        return clip
    plain = normalise(clip.text)
    if not plain:
        raise Dropped("text", f"no words in the transcript: {clip.text:.80}")
    return replace(clip, text=plain)


def _checked_duration(clip: Clip, check: Callable[[], Check], filters: Filters, checked: CheckedAudio) -> float:
    """Duration of a clip; raises AudioError or CorpusError if it cannot be used, Dropped if a filter leaves it out."""
    if clip.text == "":
        raise CorpusError(f"{clip.audio}: no transcript; correct the corpus or leave the clip out")
    if clip.split not in SPLITS:
        raise CorpusError(f"{clip.audio}: split is {clip.split!r}; it must be one of {', '.join(SPLITS)}")
    result = check()
    if earlier := checked.register(f"id {clip.dataset}-{clip.id}", str(clip.audio)):
        raise CorpusError(f"{clip.audio}: {earlier} has the same id {clip.id}; make every id unique")
    filters.check_seconds(result.seconds)
    if result.silence is not None:
        filters.check_silence(result.silence)
    if filters.duplicates == "drop":
        content = json.dumps(["content", result.digest, clip.start, clip.duration, clip.channel, clip.text])
        if earlier := checked.register(content, clip.id):
            raise Dropped("duplicates", f"same audio and transcript as {earlier}")
    return result.seconds


def _rows(clip: Clip, seconds: float, output: Path, hparams: dict[str, Any]) -> list[dict[str, Any]]:
    """Manifest rows of a clip; raises CorpusError if there are none."""
    rows = questions(clip, hparams["seed"], hparams["wordings"])
    if not rows:
        raise CorpusError(f"{clip.audio}: it has no annotation to ask about; leave the clip out")
    common = {"audio": _relative(clip.audio.parent, output, clip.audio.name), "start": clip.start}
    common |= {"duration": seconds, "dataset": clip.dataset, "split": clip.split}
    common |= {"language": clip.language, "speaker": clip.speaker}
    common |= {} if clip.channel is None else {"channel": clip.channel}
    return [{"id": f"{clip.dataset}-{clip.id}-{row.pop('name')}", **common, **row} for row in rows]


def _relative(folder: Path, output: Path, name: str) -> str:
    """Path of the audio relative to the manifest, so that corpus and output can be moved together."""
    return f"{_relative_folder(folder, output)}/{name}"


@lru_cache(maxsize=4096)
def _relative_folder(folder: Path, output: Path) -> str:
    return relative_path(folder.resolve(), output.resolve())


def _first_rows(work: Path) -> Iterator[dict[str, Any]]:
    """Yield one row of each good clip; all rows of a clip have the same features."""
    for split in SPLITS:
        for clip in _lines(work / f"{split}.jsonl"):
            yield clip["rows"][0]


def _extract(
    partition: Partition, work: Path, output: Path, hparams: dict[str, Any], run_opts: dict[str, Any]
) -> dict[str, str]:
    """Store the features of a partition; if it is all clips, returns the keys without features, with the reasons."""
    folder = Path(hparams["feature_folder"])
    gpu = f"cuda:{local_rank()}"
    summary = extract(
        _first_rows(work),
        build("encoders", hparams["encoder"]),
        folder,
        audio_root=output,
        batch_seconds=hparams["batch_seconds"],
        dtype=hparams["feature_dtype"],
        long_audio=hparams["long_audio"],
        seed=hparams["seed"],
        workers=hparams["num_workers"],
        device=run_opts.get("device") or (gpu if torch.cuda.is_available() else "cpu"),
        rank=partition.rank,
        world_size=partition.world_size,
        max_rejects=1.0,  # `prepare` counts them together with the other rejected clips
    )
    print(f"features, part {partition.rank + 1} of {partition.world_size}: {summary}")
    if partition.world_size > 1:
        wait_for_all_ranks()
        return {}
    rejects_file = folder / "rejected.jsonl"
    return {entry["key"]: entry["reason"] for entry in _lines(rejects_file)} if rejects_file.exists() else {}


def _reject_without_features(failed: dict[str, str], work: Path, rejected: RejectedClips) -> None:
    """Reject the clips whose features could not be computed."""
    for split in SPLITS if failed else ():
        for clip in _lines(work / f"{split}.jsonl"):
            if reason := failed.get(feature_key(clip["rows"][0])):
                rejected.add_fault(clip["id"], clip["audio"], reason)


def _write_manifests(failed: dict[str, str], output: Path, work: Path) -> None:
    """Write the manifests of all splits, print their totals, and delete the files that they were made from."""
    table = []
    for split in SPLITS:
        totals: dict[str, list] = {}  # task -> a line of the table
        write_manifest(work / f"{split}.manifest", _good_rows(work / f"{split}.jsonl", failed, totals))
        table += [[split, task, *totals[task]] for task in sorted(totals)]
    for split in SPLITS:
        move(work / f"{split}.manifest", output / f"{split}.jsonl")
        (work / f"{split}.jsonl").unlink()
    print(format_table(["split", "task", "rows", "clips", "hours"], table))


def _good_rows(file: Path, failed: dict[str, str], totals: dict[str, list]) -> Iterator[dict[str, Any]]:
    """Yield the rows of clips with features; adds rows, clips and hours of each task, and of "all", to `totals`."""
    for clip in _lines(file):
        if feature_key(clip["rows"][0]) in failed:
            continue
        yield from clip["rows"]
        for task, count in {"all": len(clip["rows"]), **Counter(row["task"] for row in clip["rows"])}.items():
            line = totals.setdefault(task, [0, 0, 0.0])
            line[0] += count
            line[1] += 1
            line[2] += clip["rows"][0]["duration"] / 3600


def _few(clips: Iterable[Clip], count: int = 8) -> list[Clip]:
    """Random `count` clips of each split, by reservoir sampling, which keeps only these in memory."""
    kept: dict[str, list[Clip]] = {}
    seen: Counter = Counter()
    generator = random.Random(0)
    for clip in clips:
        members = kept.setdefault(clip.split, [])
        seen[clip.split] += 1
        if len(members) < count:
            members.append(clip)
        elif (index := generator.randrange(seen[clip.split])) < count:
            members[index] = clip
    return [clip for members in kept.values() for clip in members]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_line(file: TextIO, entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
