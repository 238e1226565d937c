"""Barista: spoken coffee orders with intent and slots (Picovoice's speech-to-intent benchmark, Apache-2.0)."""

import json
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, is_held_out, require

SOURCE = "https://github.com/Picovoice/speech-to-intent-benchmark (data/speech, labels as JSON lines)"
KEYS = {
    "data_folder": Key("Folder with train.jsonl and audio/.", str, result=False),
    "valid_share": Key("Share of the recordings held out for validation.", float),
    "test_share": Key("Share of the recordings held out for test.", float),
}
# Names of the slots as a listener would say them.
SLOTS = {
    "coffeeDrink": "drink",
    "size": "size",
    "roast": "roast",
    "numberOfShots": "shots",
    "milkAmount": "milk",
    "sugarAmount": "sugar",
}


def read_barista(data_folder: str | Path, valid_share: float, test_share: float, seed: int) -> list[Clip]:
    """Read train.jsonl: one JSON object per recording with audio, intent, slots and duration.

    The corpus names no speakers, so recordings are held out one by one; a speaker can be in two splits.

    Parameters
    ----------
    data_folder : path
        Folder with train.jsonl.
    valid_share, test_share : float
        Shares of the recordings.
    seed : int
        Seed of the choice.

    Returns
    -------
    list of Clip
        With the label "order": every slot as "name: value", in the order of `SLOTS`.

    Raises
    ------
    CorpusError
        A file is missing, a line is not JSON, or a slot is unknown.
    """
    folder = Path(data_folder)
    require(folder, ["train.jsonl", "audio"], "Barista", SOURCE)
    clips = []
    for number, line in enumerate((folder / "train.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            slots = row["slots"]
            order = "; ".join(f"{name}: {slots[slot]}" for slot, name in SLOTS.items() if slot in slots)
            audio = str(row["audio"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{folder / 'train.jsonl'}, line {number}: {error!r}; download it again") from error
        if unknown := sorted(set(slots) - set(SLOTS)):
            raise CorpusError(f"{folder / 'train.jsonl'}, line {number}: unknown slot {unknown[0]!r}")
        name = Path(audio).stem
        split = "train"
        if is_held_out(name, test_share + valid_share, seed):
            split = "test" if is_held_out(name, test_share, seed) else "valid"
        clips.append(Clip("Barista", name, folder / audio, split, name, labels=(Label("order", order or "nothing"),)))
    return clips
