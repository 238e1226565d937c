"""Speakers of MiniASQA: a parametric family of espeak-ng voices with known gender and age.

A speaker is an accent of espeak-ng and a voice variant. The variant's vocal tract length (formant scale), pitch,
roughness and flutter depend on gender and age, so that the labels describe the sound. (Not all of espeak-ng's own
female variants have a higher pitch than the male ones.)
"""

from dataclasses import dataclass

import numpy as np

ACCENTS = (
    "gmw/en",
    "gmw/en-US",
    "gmw/en-029",
    "gmw/en-GB-scotland",
    "gmw/en-GB-x-rp",
    "gmw/en-GB-x-gbclan",
    "gmw/en-GB-x-gbcwmd",
    "gmw/en-US-nyc",
)
SPEAKERS = {"train": 240, "valid": 24, "test": 48}
AGES = (18, 77)


@dataclass(frozen=True)
class Speaker:
    """One synthetic voice.

    Attributes
    ----------
    name : str
        Such as ``train017``; also the name of the voice variant file.
    gender : str
        ``male`` or ``female``.
    age : int
        Age in years; speech becomes slower, rougher and less steady with it.
    accent : str
        espeak-ng voice file.
    pitch : int
        Base frequency in Hz (espeak's lower pitch limit).
    formants : int
        Formant frequencies in percent of the default vocal tract.
    rate : int
        Words per minute in neutral style.
    roughness, flutter : int
        espeak-ng's settings of an unsteady voice. (Its `breath` is not used, because it depends on the clock.)
    """

    name: str
    gender: str
    age: int
    accent: str
    pitch: int
    formants: int
    rate: int
    roughness: int
    flutter: int

    def variant(self) -> str:
        """Text of the espeak-ng voice variant file of this speaker."""
        lines = [
            "language variant",
            f"name {self.name}",
            f"gender {self.gender}",
            f"pitch {self.pitch} {int(self.pitch * 1.5)}",
            f"roughness {self.roughness}",
            f"flutter {self.flutter}",
        ]
        lines += [f"formant {i} {self.formants} 100 100" for i in range(1, 9)]
        return "\n".join(lines) + "\n"


def make_speakers(split: str) -> list[Speaker]:
    """Return the speakers of a split. They are the same on every machine, and no speaker is in two splits.

    Examples
    --------
    >>> speakers = make_speakers("valid")
    >>> len(speakers), [(speaker.name, speaker.gender) for speaker in speakers[:2]]
    (24, [('valid000', 'male'), ('valid001', 'female')])
    """
    offset = list(SPEAKERS).index(split)
    return [_draw(f"{split}{i:03d}", np.random.default_rng([20, offset, i]), i) for i in range(SPEAKERS[split])]


def _draw(name: str, rng: np.random.Generator, index: int) -> Speaker:
    gender = ("male", "female")[index % 2]
    age = int(rng.integers(AGES[0], AGES[1] + 1))
    # 0 at the youngest, 1 at the oldest voice.
    years = (age - AGES[0]) / (AGES[1] - AGES[0])
    if gender == "male":
        pitch, formants = rng.uniform(72, 112), rng.uniform(90, 101)
    else:
        pitch, formants = rng.uniform(158, 225), rng.uniform(108, 122)
    return Speaker(
        name=name,
        gender=gender,
        age=age,
        accent=ACCENTS[int(rng.integers(len(ACCENTS)))],
        pitch=int(pitch),
        formants=int(formants),
        rate=int(190 - 60 * years + rng.uniform(-4, 4)),
        roughness=int(round(6 * years)),
        flutter=int(round(2 + 26 * years)),
    )
