"""From a clip of a real corpus to questions and answers about it."""

import random
from typing import Any

from data_prep.clips import Clip

# The wordings are MiniASQA's, so that its shipped language model knows the questions from its own training.
from data_prep.miniasqa.questions import AGE, ASR, CAPTION, GENDER, SOUND


def questions(clip: Clip, seed: int) -> list[dict[str, Any]]:
    """All questions that what is known of a clip can answer.

    Parameters
    ----------
    clip : Clip
        One recording.
    seed : int
        With the clip's dataset, id and the task, all that the choice of wording depends on.

    Returns
    -------
    list of dict
        Fields task, instruction, target and references; label and labels of a closed question; age.
    """

    def choose(task: str, forms: list) -> Any:
        return random.Random(f"{seed} {clip.dataset} {clip.id} {task}").choice(forms)

    def labelled(task: str, forms: list[tuple[str, str]], label: str) -> dict[str, Any]:
        instruction, answer = choose(task, forms)
        target = answer.format(label=label)
        return {"task": task, "instruction": instruction, "target": target, "references": [target], "label": label}

    rows = []
    if clip.text is not None:
        instruction = choose("asr", ASR)
        rows.append({"task": "asr", "instruction": instruction, "target": clip.text, "references": [clip.text]})
    if clip.gender is not None:
        rows.append(labelled("gender", GENDER, clip.gender) | {"labels": ["male", "female"]})
    if clip.age is not None:
        rows.append(labelled("age", AGE, str(clip.age)) | {"age": clip.age})
    if clip.sound is not None:
        rows.append(labelled("sound_class", SOUND, clip.sound) | {"labels": list(clip.sounds)})
    if clip.captions:
        target, references = choose("caption target", list(clip.captions)), list(clip.captions)
        instruction = choose("caption", CAPTION)
        rows.append({"task": "caption", "instruction": instruction, "target": target, "references": references})
    return rows
