"""Sentences of MiniASQA: a small grammar with about 500 words, which also has spelled words, numbers and dates.

The hash of a sentence decides its split. So no test sentence is in a training set made with this grammar, whatever its
size and seed, including that of the backbones.
"""

import hashlib

import numpy as np

PEOPLE = """man woman boy girl doctor teacher farmer driver sailor king queen baker singer painter neighbor lawyer
soldier student captain child brother sister mother father uncle friend nurse pilot judge guest""".split()
QUALITIES = """old young tall happy tired clever quiet famous rich poor kind strong angry gentle brave lazy funny
strange proud honest""".split()
THINGS = """book apple table chair bottle letter car boat house garden bread knife hat coat shoe watch picture piano
guitar lamp box basket bag cup plate key ring stone flower tree ladder bicycle map ticket candle mirror blanket pencil
window door""".split()
COLORS = "red blue green yellow black white brown gray golden purple".split()
SIZES = "big small long short heavy light broken empty new ancient".split()
TRANSITIVE = """bought sold found lost carried painted cleaned opened closed broke stole moved dropped wanted needed
liked watched fixed hid borrowed""".split()
PLACES = """market river school station kitchen church village forest mountain beach office hotel museum theater
harbor bridge castle hospital library valley""".split()
GOING = "walked ran drove went came traveled hurried returned".split()
TIMES = """today yesterday tomorrow tonight again slowly quickly quietly together alone early late always never
sometimes""".split()
WEATHER = "sunny rainy cloudy windy cold warm foggy dry".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = """january february march april may june july august september october november december""".split()
ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""".split()
DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = """ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()
COMMANDS = "start stop enter erase help go yes no repeat rubout".split()
SPEECH = "said thought knew believed heard hoped".split()
FOODS = "soup rice cheese fish meat butter sugar salt coffee tea milk water juice cake".split()
MEALS = "cooked ate drank served tasted ordered".split()
ANIMALS = "horse cat cow sheep duck goat rabbit mouse lion bear".split()
ANIMAL_VERBS = "slept jumped waited stood played hid".split()
PREPOSITIONS = "near behind under above beside inside".split()


def make_sentence(rng: np.random.Generator) -> tuple[str, str]:
    """Draw one sentence.

    Returns
    -------
    text, spoken : str
        Lower-case words separated by single spaces, and the same number of words spelled so that espeak-ng pronounces
        them correctly (the letter "a" as "ay").

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> [make_sentence(rng)[0] for _ in range(2)]
    ['we hoped that that proud singer drove to the castle always', 'it is cold and sunny in the hospital']
    """
    form = FORMS[int(rng.choice(len(FORMS), p=_WEIGHTS))]
    words = form(_Draw(rng)).split()
    if form in (_spelling, _code):
        return " ".join(words), " ".join("ay" if w == "a" else w for w in words)
    return " ".join(words), " ".join(words)


def split_of(text: str) -> str:
    """Split of a sentence: one in twelve is for test, one in twelve for validation.

    Examples
    --------
    >>> splits = [split_of(f"sentence {number}") for number in range(1200)]
    >>> {split: splits.count(split) for split in ("train", "valid", "test")}
    {'train': 996, 'valid': 102, 'test': 102}
    """
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 12
    return {0: "test", 1: "valid"}.get(bucket, "train")


class _Draw:
    """Random draws; a call draws from word lists, so that the forms below read like sentences."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, *lists: list[str]) -> str:
        words = [w for group in lists for w in group]
        return words[int(self.rng.integers(len(words)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def count(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


def _person(d: _Draw) -> str:
    quality = d(QUALITIES) + " " if d.chance(0.5) else ""
    return f"{d(['the', 'my', 'his', 'her', 'our', 'that'])} {quality}{d(PEOPLE)}"


def _thing(d: _Draw) -> str:
    quality = d(COLORS, SIZES) + " " if d.chance(0.6) else ""
    return f"{d(['the', 'this', 'my', 'your', 'their'])} {quality}{d(THINGS)}"


def _number(d: _Draw) -> str:
    kind = d.count(0, 3)
    if kind == 0:
        return d(DIGITS[2:])
    if kind == 1:
        return d(TEENS)
    if kind == 2:
        return f"{d(TENS)} {d(DIGITS[1:])}"
    return f"{d(DIGITS[1:])} hundred"


def _transitive(d: _Draw) -> str:
    end = " " + d(TIMES) if d.chance(0.5) else ""
    return f"{_person(d)} {d(TRANSITIVE)} {_thing(d)}{end}"


def _going(d: _Draw) -> str:
    end = " " + d(TIMES) if d.chance(0.4) else f" on {d(DAYS)}" if d.chance(0.5) else ""
    return f"{_person(d)} {d(GOING)} to the {d(PLACES)}{end}"


def _counted(d: _Draw) -> str:
    return f"{_person(d)} {d(TRANSITIVE)} {_number(d)} {d(THINGS)}s"


def _weather(d: _Draw) -> str:
    return f"it {d(['was', 'is', 'will be'])} {d(WEATHER)} and {d(WEATHER)} {d(['in', 'near'])} the {d(PLACES)}"


def _saying(d: _Draw) -> str:
    return f"{d(['he', 'she', 'they', 'we', 'i'])} {d(SPEECH)} that {_going(d)}"


def _date(d: _Draw) -> str:
    day = d(ORDINALS) if d.chance(0.7) else f"twenty {d(ORDINALS[:9])}"
    year = f" {d(['nineteen', 'twenty'])} {d(TENS)} {d(DIGITS[1:])}" if d.chance(0.6) else ""
    return f"{d(MONTHS)} {day}{year}"


def _digits(d: _Draw) -> str:
    return " ".join(d(DIGITS, ["oh"]) for _ in range(d.count(3, 8)))


def _spelling(d: _Draw) -> str:
    return " ".join(d(LETTERS) for _ in range(d.count(3, 8)))


def _code(d: _Draw) -> str:
    letters = " ".join(d(LETTERS) for _ in range(d.count(1, 4)))
    return f"{d(COMMANDS)} {letters} {_number(d)}" if d.chance(0.7) else f"{d(COMMANDS)} {d(COMMANDS)}"


def _meal(d: _Draw) -> str:
    return f"{_person(d)} {d(MEALS)} {d(FOODS)} and {d(FOODS)} in the {d(PLACES)}"


def _animal(d: _Draw) -> str:
    which = f"{d(['the', 'a', 'one', 'every'])} {d(COLORS, SIZES)} {d(ANIMALS)}"
    return f"{which} {d(ANIMAL_VERBS)} {d(PREPOSITIONS)} the {d(THINGS, PLACES)}"


def _request(d: _Draw) -> str:
    return f"please {d(['bring', 'give', 'show', 'send'])} {d(['me', 'us', 'him', 'them'])} {_thing(d)}"


FORMS = (
    _transitive,
    _going,
    _counted,
    _weather,
    _saying,
    _date,
    _digits,
    _spelling,
    _code,
    _meal,
    _animal,
    _request,
)
_WEIGHTS = np.array([3, 2.5, 1.5, 1, 1.5, 1.3, 1, 1.3, 1.2, 1.2, 1.5, 1.2])
_WEIGHTS /= _WEIGHTS.sum()


def vocabulary() -> list[str]:
    """All words of the grammar, sorted; the classes of the encoder's word head."""
    rng = np.random.default_rng(0)
    words = {w for value in globals().values() if isinstance(value, list) for w in value}
    words |= {t + "s" for t in THINGS} | {"oh"}
    for _ in range(20000):
        words.update(make_sentence(rng)[0].split())
    return sorted(words)
