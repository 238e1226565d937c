"""Questions and answers about MiniASQA's clips: the tasks of LTU-AS on synthetic audio.

The question determines the form of its answer, so that free-text answers can be learnt and scored.
"""

import numpy as np

from data_prep.miniasqa.corpus import STYLES, Plan
from data_prep.miniasqa.sounds import SOUNDS

ASR = [
    "what does the speaker say?",
    "transcribe the speech.",
    "write down the words that are spoken.",
    "what is said in this recording?",
    "turn the speech into text.",
    "please give the transcript.",
]
CAPTION = [
    "describe the audio.",
    "what can be heard?",
    "write a caption for this clip.",
    "describe this recording in one sentence.",
    "what is going on in the audio?",
]
# (question, answer) pairs; {label} is the answer's label.
SOUND = [
    ("which sound is this?", "{label}"),
    ("name the sound.", "{label}"),
    ("what kind of sound is it?", "this is the sound of {label}"),
    ("classify the sound in this clip.", "the sound is {label}"),
]
GENDER = [
    ("is the speaker male or female?", "the speaker is {label}"),
    ("what is the gender of the speaker?", "{label}"),
    ("whose voice is it, male or female?", "it is a {label} voice"),
    ("name the gender of the voice.", "{label}"),
]
EMOTION = [
    ("how does the speaker sound?", "the speaker sounds {label}"),
    ("which emotion is in the voice?", "{label}"),
    ("in which mood is the speaker?", "{label}"),
    ("what is the emotion of the speaker?", "the emotion is {label}"),
]
AGE = [
    ("how old is the speaker?", "about {label} years old"),
    ("guess the age of the voice.", "{label}"),
    ("what is the age of the speaker?", "the speaker is about {label}"),
    ("give the age of the speaker in years.", "{label}"),
]
BEHIND = [
    ("which sound is behind the voice?", "{label}"),
    ("what can be heard in the background?", "in the background there is {label}"),
    ("name the background sound.", "{label}"),
]
PRESENT = [
    ("is there {sound} behind the voice?", "{label}"),
    ("can {sound} be heard while somebody speaks?", "{label}"),
]

# Five descriptions of each sound; the reference captions of every clip use all of them.
PHRASES = {
    "dog": ["a dog barks", "a dog is barking", "somewhere a dog barks", "the bark of a dog", "a dog gives a bark"],
    "rain": ["rain falls", "rain is falling", "it is raining", "the sound of rain", "rain drops on the ground"],
    "sea waves": [
        "sea waves roll in",
        "waves roll on the beach",
        "the sea is rolling",
        "waves of the sea",
        "waves break",
    ],
    "crying baby": ["a baby cries", "a baby is crying", "a small child cries", "the cry of a baby", "a crying baby"],
    "clock tick": [
        "a clock ticks",
        "a clock is ticking",
        "the tick of a clock",
        "a clock goes tick",
        "a ticking clock",
    ],
    "sneeze": ["a person sneezes", "somebody is sneezing", "someone sneezes", "the sneeze of a person", "a sneeze"],
    "helicopter": [
        "a helicopter flies",
        "a helicopter is flying",
        "the blades of a helicopter turn",
        "a helicopter passes",
        "the sound of a helicopter",
    ],
    "chainsaw": [
        "a chainsaw runs",
        "a chainsaw is running",
        "a saw cuts wood",
        "the noise of a chainsaw",
        "a chainsaw cuts",
    ],
    "rooster": [
        "a rooster crows",
        "a rooster is crowing",
        "the crow of a rooster",
        "a rooster calls",
        "a crowing rooster",
    ],
    "crackling fire": [
        "a fire crackles",
        "a fire is crackling",
        "wood burns in a fire",
        "the crackle of fire",
        "a fire burns",
    ],
    "siren": [
        "a siren wails",
        "a siren is wailing",
        "the wail of a siren",
        "an alarm siren sounds",
        "a siren goes off",
    ],
    "bell": ["a bell rings", "a bell is ringing", "the ring of a bell", "somebody rings a bell", "a ringing bell"],
    "telephone": [
        "a telephone rings",
        "a telephone is ringing",
        "the ring of a telephone",
        "somebody calls by telephone",
        "a ringing telephone",
    ],
    "bird": ["a bird sings", "a bird is singing", "the song of a bird", "a bird chirps", "a chirping bird"],
}
_TEMPO = {"rain": ("lightly", "heavily"), "sea waves": ("gently", "strongly"), "crackling fire": ("softly", "strongly")}
_TREND = {
    "steady": ["", "", "steadily", "", "evenly"],
    "rising": ["and grows louder", "and gets louder", "louder and louder", "growing loud", "and comes near"],
    "fading": ["and fades away", "and gets quieter", "more and more quietly", "fading away", "and goes away"],
}


def rows_for(plan: Plan, rng: np.random.Generator, voice_questions: int = 3, no_speech: bool = False) -> list[dict]:
    """Questions about a clip: fields task, instruction, target, references and, for closed questions, label.

    `voice_questions` of the three about the voice (gender, emotion, age) are drawn at random. Noise is asked for its
    transcript, which is empty (task no_speech); so is a sound with `no_speech`.

    Examples
    --------
    >>> from data_prep.miniasqa.sounds import SoundEvent
    >>> plan = Plan("test-sound-0", "test", (0,), sound=SoundEvent("dog", True, "steady", 2.0))
    >>> for row in rows_for(plan, np.random.default_rng(0)):
    ...     print(row["task"], "-", row["instruction"], "-", row["target"])
    sound_class - classify the sound in this clip. - the sound is dog
    caption - describe this recording in one sentence. - somewhere a dog barks quickly steadily
    """
    rows = []
    if plan.kind == "noise":
        return [_no_speech(rng)]
    if plan.text is not None:
        rows.append(_row("asr", ASR[int(rng.integers(len(ASR)))], plan.text))
        voice = [
            _labelled("gender", GENDER, plan.speaker.gender, ["male", "female"], rng),
            _labelled("emotion", EMOTION, plan.emotion, list(STYLES), rng),
            _labelled("age", AGE, str(5 * round(plan.speaker.age / 5)), None, rng) | {"age": plan.speaker.age},
        ]
        rows += voice if voice_questions == 3 else rng.permutation(voice)[:voice_questions].tolist()
    if plan.kind == "sound":
        rows.append(_labelled("sound_class", SOUND, plan.sound.label, list(SOUNDS), rng))
    if plan.kind == "mixture":
        rows.append(_labelled("qa", BEHIND, plan.sound.label, list(SOUNDS), rng))
        rows.append(_present(plan.sound.label, rng))
    references = captions(plan)
    instruction = CAPTION[int(rng.integers(len(CAPTION)))]
    rows.append(_row("caption", instruction, references[int(rng.integers(5))]) | {"references": references})
    if no_speech and plan.kind == "sound":
        rows.append(_no_speech(rng))
    return rows


def spoken_labels(plan: Plan) -> list[str]:
    """Labels of a clip, in the words that the answers use.

    Examples
    --------
    >>> from data_prep.miniasqa.sounds import SoundEvent
    >>> spoken_labels(Plan("test-sound-0", "test", (0,), sound=SoundEvent("dog", True, "rising", 2.0)))
    ['dog', 'quickly', 'louder']
    """
    labels = []
    if plan.speaker is not None:
        labels += [plan.speaker.gender, plan.emotion, str(5 * round(plan.speaker.age / 5))]
    if plan.sound is not None:
        labels.append(plan.sound.label)
    if plan.kind == "sound":  # no question asks for tempo and trend of a background sound
        labels.append("quickly" if plan.sound.fast else "slowly")
        labels += {"steady": [], "rising": ["louder"], "fading": ["away"]}[plan.sound.trend]
    return labels


def captions(plan: Plan) -> list[str]:
    """The five reference captions of a clip.

    Examples
    --------
    >>> from data_prep.miniasqa.sounds import SoundEvent
    >>> captions(Plan("test-sound-0", "test", (0,), sound=SoundEvent("rain", True, "rising", 2.0)))[:2]
    ['rain falls heavily and grows louder', 'rain is falling heavily and gets louder']
    """
    if plan.sound is not None:
        phrases = PHRASES[plan.sound.label]
    if plan.speaker is not None:
        who = {"male": "man", "female": "woman"}[plan.speaker.gender]
        spoken = [
            f"a {who} speaks in a {plan.emotion} voice",
            f"a {plan.emotion} {who} is speaking",
            f"the {plan.emotion} voice of a {who}",
            f"a {who} talks and sounds {plan.emotion}",
            f"speech of a {plan.emotion} {who}",
        ]
        if plan.sound is None:
            return spoken
        return [
            f"{voice} while {phrases[0]}" if i < 3 else f"{voice} and {phrases[i]}" for i, voice in enumerate(spoken)
        ]
    tempo = _TEMPO.get(plan.sound.label, ("slowly", "quickly"))[plan.sound.fast]
    trends = _TREND[plan.sound.trend]
    return [" ".join(f"{phrase} {tempo} {trend}".split()) for phrase, trend in zip(phrases, trends, strict=True)]


def _no_speech(rng: np.random.Generator) -> dict:
    return _row("no_speech", ASR[int(rng.integers(len(ASR)))], "")


def _row(task: str, instruction: str, target: str) -> dict:
    return {"task": task, "instruction": instruction, "target": target, "references": [target]}


def _labelled(
    task: str, forms: list[tuple[str, str]], label: str, labels: list[str] | None, rng: np.random.Generator
) -> dict:
    question, answer = forms[int(rng.integers(len(forms)))]
    row = _row(task, question, answer.format(label=label)) | {"label": label}
    return row if labels is None else row | {"labels": labels}


def _present(sound: str, rng: np.random.Generator) -> dict:
    """A yes-or-no question; half of them are about a sound that is not in the clip."""
    present = bool(rng.random() < 0.5)
    others = [name for name in SOUNDS if name != sound]
    queried = sound if present else others[int(rng.integers(len(others)))]
    question, _ = PRESENT[int(rng.integers(len(PRESENT)))]
    label = "yes" if present else "no"
    answer = "yes" if present else f"no, there is {sound}"
    return _row("qa", question.format(sound=queried), answer) | {"label": label, "labels": ["yes", "no"]}
