"""ESC-50 and its subset ESC-10 (Piczak 2015, doi 10.1145/2733373.2806390): environmental sounds, five seconds each."""

import csv
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, Label, hold_out, require

SOURCE = "https://github.com/karolpiczak/ESC-50 (archive/master.zip)"

KEYS = {
    "data_folder": Key("The unpacked corpus, with audio/ and meta/.", str, result=False),
    "esc10": Key("Keep the ten classes of ESC-10 only.", bool, False),
    "test_fold": Key("Fold to test on; the others are for training and validation.", int),
    "valid_share": Key("Share of the source recordings of each class held out for validation.", float),
}
# ESC-50 has classes and no captions. `_captions` makes five captions from the three phrases of a class.
_PHRASES = {
    "airplane": ("an airplane flies over", "an airplane is flying", "the drone of an airplane"),
    "breathing": ("someone breathes", "a person is breathing", "the breath of a person"),
    "brushing_teeth": ("someone brushes their teeth", "a person is brushing teeth", "the scrub of a toothbrush"),
    "can_opening": ("someone opens a can", "a can is being opened", "the hiss of an opened can"),
    "car_horn": ("a car honks", "a car horn is sounding", "the horn of a car"),
    "cat": ("a cat meows", "a cat is meowing", "the meow of a cat"),
    "chainsaw": ("a chainsaw runs", "a chainsaw is running", "the noise of a chainsaw"),
    "chirping_birds": ("birds chirp", "birds are chirping", "the song of birds"),
    "church_bells": ("church bells ring", "church bells are ringing", "the ring of church bells"),
    "clapping": ("people clap", "people are clapping their hands", "the applause of an audience"),
    "clock_alarm": ("an alarm clock rings", "an alarm clock is ringing", "the alarm of a clock"),
    "clock_tick": ("a clock ticks", "a clock is ticking", "the tick of a clock"),
    "coughing": ("someone coughs", "a person is coughing", "the cough of a person"),
    "cow": ("a cow moos", "a cow is mooing", "the moo of a cow"),
    "crackling_fire": ("a fire crackles", "a fire is crackling", "the crackle of a fire"),
    "crickets": ("crickets chirp", "crickets are chirping", "the chirp of crickets"),
    "crow": ("a crow caws", "a crow is cawing", "the caw of a crow"),
    "crying_baby": ("a baby cries", "a baby is crying", "the cry of a baby"),
    "dog": ("a dog barks", "a dog is barking", "the bark of a dog"),
    "door_wood_creaks": ("a wooden door creaks", "a wooden door is creaking", "the creak of a wooden door"),
    "door_wood_knock": ("someone knocks on a door", "a person is knocking on wood", "the knock on a wooden door"),
    "drinking_sipping": ("someone sips a drink", "a person is drinking", "the sip of a person who drinks"),
    "engine": ("an engine runs", "an engine is running", "the rumble of an engine"),
    "fireworks": ("fireworks explode", "fireworks are exploding", "the bang of fireworks"),
    "footsteps": ("someone walks", "a person is walking", "the footsteps of a person"),
    "frog": ("a frog croaks", "a frog is croaking", "the croak of a frog"),
    "glass_breaking": ("glass breaks", "glass is breaking", "the crash of breaking glass"),
    "hand_saw": ("someone saws wood by hand", "a person is sawing wood", "the stroke of a hand saw"),
    "helicopter": ("a helicopter flies", "a helicopter is flying", "the blades of a helicopter"),
    "hen": ("a hen clucks", "a hen is clucking", "the cluck of a hen"),
    "insects": ("insects buzz", "insects are buzzing", "the buzz of insects"),
    "keyboard_typing": ("someone types", "a person is typing on a keyboard", "the clatter of a keyboard"),
    "laughing": ("someone laughs", "a person is laughing", "the laughter of a person"),
    "mouse_click": ("someone clicks a mouse", "a computer mouse is clicking", "the click of a mouse"),
    "pig": ("a pig grunts", "a pig is grunting", "the grunt of a pig"),
    "pouring_water": ("someone pours water", "water is being poured", "the splash of poured water"),
    "rain": ("rain falls", "it is raining", "the sound of rain"),
    "rooster": ("a rooster crows", "a rooster is crowing", "the crow of a rooster"),
    "sea_waves": ("sea waves roll in", "waves are breaking on a beach", "the roar of the sea"),
    "sheep": ("a sheep bleats", "a sheep is bleating", "the bleat of a sheep"),
    "siren": ("a siren wails", "a siren is wailing", "the wail of a siren"),
    "sneezing": ("someone sneezes", "a person is sneezing", "the sneeze of a person"),
    "snoring": ("someone snores", "a person is snoring", "the snore of a sleeper"),
    "thunderstorm": ("thunder rolls", "a thunderstorm is raging", "the rumble of thunder"),
    "toilet_flush": ("a toilet flushes", "a toilet is being flushed", "the flush of a toilet"),
    "train": ("a train passes", "a train is passing", "the rattle of a train"),
    "vacuum_cleaner": ("a vacuum cleaner runs", "a vacuum cleaner is running", "the hum of a vacuum cleaner"),
    "washing_machine": ("a washing machine runs", "a washing machine is running", "the churn of a washing machine"),
    "water_drops": ("water drips", "water is dripping", "the drip of water"),
    "wind": ("the wind blows", "a wind is blowing", "the howl of the wind"),
}


def read_esc50(data_folder: str | Path, esc10: bool, test_fold: int, valid_share: float, seed: int) -> list[Clip]:
    """Read meta/esc50.csv; one fold is the test split.

    Parameters
    ----------
    data_folder : str or Path
        The unpacked corpus, with audio/ and meta/.
    esc10 : bool
        Keep the ten classes of ESC-10 only.
    test_fold : int
        Fold (1-5) to test on. The publisher keeps all clips of one recording in one fold.
    valid_share : float
        Share of the source recordings of each class, in the other folds, that form the validation split.
    seed : int
        Seed of the choice of recordings.

    Returns
    -------
    list of Clip
        With the class (spaces in place of underscores), the list of all classes, and five captions made from the class.

    Raises
    ------
    CorpusError
        A file or column is missing, a class is unknown, or the test fold has no clip.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("audio", "meta"):
    ...     (folder / name).mkdir()
    >>> lines = ["filename,fold,category,esc10,src_file", "1-1-A-0.wav,1,dog,True,1", "2-2-A-10.wav,2,rain,True,2"]
    >>> _ = (folder / "meta/esc50.csv").write_text("\\n".join(lines))
    >>> clips = read_esc50(folder, esc10=True, test_fold=2, valid_share=0.1, seed=0)
    >>> [(clip.id, clip.split, clip.label("sound_class"), clip.captions[0]) for clip in clips]
    [('1-1-A-0', 'train', 'dog', 'a dog barks'), ('2-2-A-10', 'test', 'rain', 'rain falls')]
    """
    folder = Path(data_folder)
    table = folder / "meta/esc50.csv"
    require(folder, ["audio", "meta/esc50.csv"], "ESC-50", SOURCE)
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"filename", "fold", "category", "esc10", "src_file"} - set(reader.fieldnames or ()):
            raise CorpusError(f"{table}: no column {', '.join(sorted(missing))}; download it again from {SOURCE}")
        rows = [row for row in reader if row["esc10"] == "True" or not esc10]
    folds = sorted({int(row["fold"]) for row in rows})
    if test_fold not in folds or len(folds) < 2:
        raise CorpusError(f"{table}: test_fold is {test_fold}, but the clips are of folds {folds}; choose another")
    if unknown := {row["category"] for row in rows} - set(_PHRASES):
        raise CorpusError(f"{table}: unknown category {', '.join(sorted(unknown))}; download it again from {SOURCE}")
    sounds = tuple(sorted({row["category"].replace("_", " ") for row in rows}))
    clips = [
        Clip(
            dataset="ESC-10" if esc10 else "ESC-50",
            id=Path(row["filename"]).stem,
            audio=folder / "audio" / row["filename"],
            split="test" if int(row["fold"]) == test_fold else "train",
            group=row["src_file"],
            labels=(Label("sound_class", row["category"].replace("_", " "), sounds),),
            captions=_captions(row["category"]),
        )
        for row in rows
    ]
    return hold_out(clips, valid_share, "valid", seed, stratum=lambda clip: clip.label("sound_class"))


def _captions(category: str) -> tuple[str, ...]:
    plain, progressive, noun = _PHRASES[category]
    return plain, progressive, noun, f"{noun} can be heard", f"a recording in which {progressive}"
