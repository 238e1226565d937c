"""Barista: spoken coffee orders with intent and slots (Picovoice's speech-to-intent benchmark, Apache-2.0)."""

import json
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, is_held_out, read_lines, require

SOURCE = "https://github.com/Picovoice/speech-to-intent-benchmark"
KEYS = {
    "data_folder": Key("Folder with train.jsonl and audio/.", str, result=False),
    "valid_share": Key("Share of the recordings held out for validation.", float),
    "test_share": Key("Share of the recordings held out for test.", float),
}
# Slot of the corpus -> its name in an answer, in the order of the answer.
SLOTS = {
    "coffeeDrink": "drink",
    "size": "size",
    "roast": "roast",
    "numberOfShots": "shots",
    "milkAmount": "milk",
    "sugarAmount": "sugar",
}


def read_barista(data_folder: str | Path, valid_share: float, test_share: float, seed: int) -> Iterator[Clip]:
    """Read train.jsonl: a JSON object per recording with audio, intent, slots and duration.

    The corpus names no speakers, so recordings are held out one by one, and a speaker can be in two splits.

    Parameters
    ----------
    data_folder : str or Path
        Folder with train.jsonl and the audio that it names.
    valid_share, test_share : float
        Shares of the recordings held out.
    seed : int
        Seed of the choice.

    Yields
    ------
    Clip
        With a label of the task "order": its slots as "name: value", in the order of `SLOTS`, and no transcript.

    Raises
    ------
    CorpusError
        A file is missing, or a line has no audio, no slot or an unknown slot.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "audio").mkdir()
    >>> row = {"audio": "audio/1.ogg", "intent": "orderDrink", "slots": {"size": "small", "coffeeDrink": "latte"}}
    >>> _ = (folder / "train.jsonl").write_text(json.dumps(row))
    >>> [(clip.id, clip.split, clip.label("order")) for clip in read_barista(folder, 0.0, 0.0, seed=1)]
    [('1', 'train', 'drink: latte; size: small')]
    """
    folder = Path(data_folder)
    require(folder, ["train.jsonl", "audio"], "Barista", SOURCE)
    for number, line in read_lines(folder / "train.jsonl"):
        where = f"{folder / 'train.jsonl'}, line {number}"
        try:
            row = json.loads(line)
            audio, slots = str(row["audio"]), dict(row["slots"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{where}: no JSON object with audio and slots ({error!r}); download it again") from error
        if not slots or not slots.keys() <= SLOTS.keys():
            raise CorpusError(f"{where}: slots are {sorted(slots)}, expected some of {sorted(SLOTS)}; correct the line")
        order = "; ".join(f"{name}: {slots[slot]}" for slot, name in SLOTS.items() if slot in slots)
        name = Path(audio).stem
        held_out = is_held_out(name, test_share + valid_share, seed)
        split = "train" if not held_out else "test" if is_held_out(name, test_share, seed) else "valid"
        group = f"Barista {name}"
        yield Clip("Barista", name, folder / audio, split, group, labels=(Label("order", order),))
