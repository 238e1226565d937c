"""Second half of every prepare script: clips -> checked manifests, a list of what was set aside, and features.

Clips pass through one at a time, so that a corpus of millions takes little memory:

    clips -> rows of good ones in preparation/<split>.jsonl -> features -> <split>.jsonl without clips that have none

and whatever is set aside on the way is in rejected.jsonl, with the reason.
"""

import json
import os
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

from audiolm_lite.audio.long_audio import LONG_AUDIO
from audiolm_lite.audio.reading import AudioError
from audiolm_lite.config.keys import Key
from audiolm_lite.config.registry import build
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.distributed.partition import Share, share_of, wait_for_all_ranks
from audiolm_lite.features.extract import extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store_format import DTYPES
from data_prep.checks import Check, CheckedAudio, in_threads
from data_prep.clips import Clip, CorpusError
from data_prep.filters import Dropped, Filters
from data_prep.questions import questions
from data_prep.tables import format_table
from data_prep.text import normaliser

SPLITS = ("train", "valid", "test")

PREPARE_KEYS = {
    "seed": Key("Seed of held-out groups and of question wordings.", int),
    "output_folder": Key("Where manifests, features and rejected.jsonl go.", str, result=False),
    "valid_share": Key("Share of training speakers or recordings held out; null: the corpus says which.", float, None),
    "wordings": Key("Questions: varied, or miniasqa, the few its LLM knows.", ("miniasqa", "varied"), "miniasqa"),
    "text": Key("Steps of text normalisation for transcripts; python -m data_prep.text --help lists them.", list, None),
    "filters": Key("Limits: {min_seconds, max_seconds, max_characters, max_silence, duplicates}.", dict, None),
    "encoder": Key("Audio encoder block whose features are stored; null writes manifests only.", dict, None),
    "feature_folder": Key("Feature store to write.", str, result=False),
    "feature_dtype": Key("How features are stored.", tuple(DTYPES), "float16"),
    "long_audio": Key("What becomes of clips longer than the encoder takes.", LONG_AUDIO, "reject"),
    "batch_seconds": Key("Seconds of audio encoded at once.", float, 120.0, result=False),
    "num_workers": Key("Processes that decode audio ahead.", int, 2, result=False),
    "shard": Key("I/N: the I-th of N shares of the features and no more, without torchrun.", str, None, result=False),
    "max_rejects": Key("Share of the clips that may have faults before preparation fails.", float, 0.01, result=False),
}


def prepare(clips: Iterable[Clip], hparams: dict[str, Any], run_opts: dict[str, Any]) -> int:
    """Write train.jsonl, valid.jsonl, test.jsonl and, where an encoder is given, the features of all clips.

    Several processes share the features under `torchrun`, whose rank 0 writes the rest when all are done, or by
    `shard`: then the same command without it finds them stored and writes the rest.

    Every clip ends in a manifest or as {id, audio, reason} in rejected.jsonl. Those there for a fault count against
    `max_rejects`; those that a filter left out on purpose have a further field `filter` and do not. Tables at the end
    say how many hours each split and task has, and how many clips were set aside for which reason.

    Run again after an interruption, the same command goes on: audio looked at is not looked at again while the file is
    unchanged, features stored are not computed again, and manifests appear whole or not at all.

    Parameters
    ----------
    clips : iterable of Clip
        What the corpora hold; a generator is read once and never held whole.
    hparams : dict
        Values of PREPARE_KEYS.
    run_opts : dict
        `device`; `debug` keeps a few clips of each split.

    Returns
    -------
    int
        Exit status for the script: 0, or 3 where clips were set aside for faults (as `data_prep.convert` has it).

    Raises
    ------
    CorpusError
        More than `max_rejects` of the clips have faults, or a split has none left. rejected.jsonl and the features are
        then complete, but no manifest is written, so that nothing trains on half a corpus by mistake: the command with
        a larger `max_rejects` writes them within seconds.
    """
    output = Path(hparams["output_folder"])
    share = share_of(hparams.get("shard"))
    work = output / "preparation" / ("" if share.goes_on else f"share-{share.rank + 1}")
    work.mkdir(parents=True, exist_ok=True)
    if run_opts.get("debug"):
        clips = _few(clips)
    with SetAside(work / "rejected.jsonl") as aside:
        total = _check(clips, hparams, output, work, aside)
        failed = {}
        if hparams["encoder"] is not None:
            if share.world_size > 1 or not share.goes_on:
                _extract(share, work, output, hparams, run_opts)
            if not share.goes_on:
                shutil.rmtree(work)
                return 0
            failed = _extract(Share(0, 1, goes_on=True), work, output, hparams, run_opts)
            _without_features(failed, work, aside)
    listed = output / "rejected.jsonl"
    os.replace(work / "rejected.jsonl", listed)

    if aside.reasons:
        print(format_table(["clips", "set aside because"], [[n, why] for why, n in aside.reasons.most_common()]))
    if aside.of_test:
        print(f"filters left out {aside.of_test} clips of the test split: scores are not comparable with those on all")
    if aside.faults > hparams["max_rejects"] * total:
        raise CorpusError(
            f"{aside.faults} of {total} clips were rejected, more than max_rejects {hparams['max_rejects']:g} allows; "
            f"all are listed in {listed}. Manifests are not written; repair the clips, or allow more with "
            f"--max_rejects. The first: {aside.first_fault}"
        )
    _write_manifests(failed, output, work)
    count = aside.reasons.total()
    print(f"set aside: {count} of {total} clips, {aside.faults} for faults{f', see {listed}' if count else ''}")
    return 3 if aside.faults else 0


class SetAside:
    """The list of clips that reach no manifest, and how many for which reason.

    Parameters
    ----------
    file : Path
        Written anew, a line {id, audio, reason} a clip, and `filter` where one left it out.

    Attributes
    ----------
    reasons : Counter
        Reasons without what differs from clip to clip, and how many clips have each.
    faults : int
        Clips that no filter left out.
    first_fault : str
        Reason of the first of them.
    of_test : int
        Clips of the test split that a filter left out.
    """

    def __init__(self, file: Path):
        # A name that is not valid Unicode must not stop the list of such names: it becomes a JSON escape.
        self._file = file.open("w", encoding="utf-8", errors="backslashreplace")
        self.reasons: Counter = Counter()
        self.faults, self.first_fault, self.of_test = 0, "", 0

    def __enter__(self) -> "SetAside":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def fault(self, id: str, audio: str, reason: str) -> None:
        """Add a clip that cannot be used."""
        self.faults += 1
        self.first_fault = self.first_fault or reason
        self._add({"id": id, "audio": audio, "reason": reason})

    def dropped(self, clip: Clip, dropped: Dropped) -> None:
        """Add a clip that a filter leaves out."""
        self.of_test += clip.split == "test"
        entry = {"id": clip.id, "audio": str(clip.audio), "reason": dropped.reason, "filter": dropped.filter}
        self._add(entry)

    def _add(self, entry: dict[str, str]) -> None:
        _write_line(self._file, entry)
        # Counted without the path, numbers and the remedy.
        kind = re.split(r"[;:(]", entry["reason"].split(f"{Path(entry['audio']).name}: ", 1)[-1])[0]
        self.reasons[re.sub(r"\d[\d.e+-]*", "…", kind).strip()] += 1


def _check(clips: Iterable[Clip], hparams: dict[str, Any], output: Path, work: Path, aside: SetAside) -> int:
    """Write {id, audio, rows} of every good clip to work/<split>.jsonl; returns how many clips there are in all."""
    filters = Filters.from_config(hparams.get("filters"))
    normalise = normaliser(hparams.get("text") or [])
    # Without extraction nothing would decode the files before training does, so they are decoded here.
    decode = hparams["encoder"] is None or filters.max_silence is not None
    total = 0
    with ExitStack() as stack:
        parts = {split: stack.enter_context((work / f"{split}.jsonl").open("w", encoding="utf-8")) for split in SPLITS}
        checked = stack.enter_context(CheckedAudio(work / "checks.sqlite", decode, filters.duplicates == "drop"))

        def look(clip: Clip) -> Check | None:
            return None if clip.text == "" else checked.check(clip.audio, clip.start, clip.duration)

        for clip, check in tqdm(in_threads(look, clips), desc="clips", unit=" clips"):
            total += 1
            try:
                clip = _with_plain_text(clip, normalise)
                found = _admitted(clip, check.result, filters, checked)
                rows = _rows(clip, found.seconds, output, hparams)
                filters.check_characters(max((row["target"] for row in rows), key=len))
                _write_line(parts[clip.split], {"id": clip.id, "audio": str(clip.audio), "rows": rows})
            except Dropped as dropped:
                aside.dropped(clip, dropped)
            except (AudioError, CorpusError) as error:
                aside.fault(clip.id, str(clip.audio), str(error))
            except UnicodeEncodeError as error:
                reason = f"name or text is not valid Unicode ({error.reason}); rename or correct it"
                aside.fault(clip.id, str(clip.audio), f"{clip.audio}: {reason}")
    return total


def _with_plain_text(clip: Clip, normalise: Callable[[str], str]) -> Clip:
    """Normalise the transcript; raises Dropped where nothing is left of it, as of one that names noises only."""
    if not clip.text:
        return clip
    plain = normalise(clip.text)
    if not plain:
        raise Dropped("text", f"no words in the transcript: {clip.text:.80}")
    return replace(clip, text=plain)


def _admitted(clip: Clip, check: Callable[[], Check], filters: Filters, checked: CheckedAudio) -> Check:
    """Facts of a clip's audio; raises AudioError or CorpusError where it cannot be used, Dropped where it shall not."""
    if clip.text == "":
        raise CorpusError(f"{clip.audio}: no transcript; correct the corpus or leave the clip out")
    if clip.split not in SPLITS:
        raise CorpusError(f"{clip.audio}: split is {clip.split!r}; it must be one of {', '.join(SPLITS)}")
    found = check()
    if earlier := checked.first_with(f"id {clip.dataset}-{clip.id}", str(clip.audio)):
        raise CorpusError(f"{clip.audio}: {earlier} has the same id {clip.id}; make every id unique")
    filters.check_seconds(found.seconds)
    if found.silence is not None:
        filters.check_silence(found.silence)
    if filters.duplicates == "drop":
        content = json.dumps(["content", found.digest, clip.start, clip.duration, clip.text])
        if earlier := checked.first_with(content, clip.id):
            raise Dropped("duplicates", f"same audio and transcript as {earlier}")
    return found


def _rows(clip: Clip, seconds: float, output: Path, hparams: dict[str, Any]) -> list[dict[str, Any]]:
    """Manifest rows of a clip; raises CorpusError where there are none."""
    asked = questions(clip, hparams["seed"], hparams["wordings"])
    if not asked:
        raise CorpusError(f"{clip.audio}: nothing is known of it that could be asked; leave the clip out")
    common = {"audio": _relative(clip.audio.parent, output, clip.audio.name), "start": clip.start}
    common |= {"duration": seconds, "dataset": clip.dataset, "split": clip.split}
    common |= {"language": clip.language, "speaker": clip.speaker}
    return [{"id": f"{clip.dataset}-{clip.id}-{question.pop('name')}", **common, **question} for question in asked]


def _relative(folder: Path, output: Path, name: str) -> str:
    """Path from the manifest to the audio, so that corpus and output can move together."""
    return os.path.join(_relative_folder(folder, output), name)


@lru_cache(maxsize=4096)
def _relative_folder(folder: Path, output: Path) -> str:
    return os.path.relpath(folder.resolve(), output.resolve())


def _first_rows(work: Path) -> Iterator[dict[str, Any]]:
    """One row of each good clip: rows of a clip share its features."""
    for split in SPLITS:
        for clip in _lines(work / f"{split}.jsonl"):
            yield clip["rows"][0]


def _extract(
    share: Share, work: Path, output: Path, hparams: dict[str, Any], run_opts: dict[str, Any]
) -> dict[str, str]:
    """Store the features of a share, those of all after it; returns the keys that have none, with the reason."""
    folder = Path(hparams["feature_folder"])
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
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
        rank=share.rank,
        world_size=share.world_size,
        max_rejects=1.0,  # counted together with the other rejects
    )
    print(f"features, share {share.rank + 1} of {share.world_size}: {summary}")
    if share.world_size > 1:
        wait_for_all_ranks()
        return {}
    listed = folder / "rejected.jsonl"
    return {entry["key"]: entry["reason"] for entry in _lines(listed)} if listed.exists() else {}


def _without_features(failed: dict[str, str], work: Path, aside: SetAside) -> None:
    """Set the clips aside whose features could not be computed."""
    for split in SPLITS if failed else ():
        for clip in _lines(work / f"{split}.jsonl"):
            if reason := failed.get(feature_key(clip["rows"][0])):
                aside.fault(clip["id"], clip["audio"], reason)


def _write_manifests(failed: dict[str, str], output: Path, work: Path) -> None:
    """Write the manifests of all splits and print what they hold; work's part files are not needed after that."""
    table = []
    for split in SPLITS:
        totals: dict[str, list] = {}  # task -> a line of the table
        write_manifest(work / f"{split}.manifest", _good_rows(work / f"{split}.jsonl", failed, totals))
        table += [[split, task, *totals[task]] for task in sorted(totals)]
    if empty := [split for split in SPLITS if split not in {line[0] for line in table}]:
        raise CorpusError(f"no clip is left for split {', '.join(empty)}; the corpus is too small or incomplete")
    for split in SPLITS:
        os.replace(work / f"{split}.manifest", output / f"{split}.jsonl")
        (work / f"{split}.jsonl").unlink()
    print(format_table(["split", "task", "rows", "clips", "hours"], table))


def _good_rows(part: Path, failed: dict[str, str], totals: dict[str, list]) -> Iterator[dict[str, Any]]:
    """Rows of the clips that have features; adds rows, clips and hours of each task, and of "all", to `totals`."""
    for clip in _lines(part):
        if feature_key(clip["rows"][0]) in failed:
            continue
        yield from clip["rows"]
        for task, count in {"all": len(clip["rows"]), **Counter(row["task"] for row in clip["rows"])}.items():
            line = totals.setdefault(task, [0, 0, 0.0])
            line[0] += count
            line[1] += 1
            line[2] += clip["rows"][0]["duration"] / 3600


def _few(clips: Iterable[Clip], count: int = 8) -> list[Clip]:
    """About `count` clips of each split, spread over it (Algorithm R, so a generator is held by no more than those)."""
    kept: dict[str, list[Clip]] = {}
    seen: Counter = Counter()
    chance = random.Random(0)
    for clip in clips:
        members = kept.setdefault(clip.split, [])
        seen[clip.split] += 1
        if len(members) < count:
            members.append(clip)
        elif (place := chance.randrange(seen[clip.split])) < count:
            members[place] = clip
    return [clip for members in kept.values() for clip in members]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_line(file: TextIO, entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
