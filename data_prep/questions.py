"""Questions and answers about a clip of a real corpus."""

import random
from typing import Any

from data_prep.clips import Clip, Event
from data_prep.wordings import WORDINGS


def questions(clip: Clip, seed: int, wordings: str = "miniasqa") -> list[dict[str, Any]]:
    """All questions that a clip's annotations can answer.

    Parameters
    ----------
    clip : Clip
        One recording.
    seed : int
        The choice of wordings depends on it, on the clip's dataset and id, and on the task.
    wordings : {"miniasqa", "varied"}
        The few wordings that MiniASQA's shipped language model was trained on, or many.

    Returns
    -------
    list of dict
        Fields name (unique in the clip), task, instruction, target and references; label and labels of a closed
        question; age; sounds, the list of all sounds that the answer names.

    Examples
    --------
    >>> from pathlib import Path
    >>> clip = Clip("AN4", "an1", Path("an1.wav"), "train", "fash", text="yes", gender="female")
    >>> [(row["task"], row["target"]) for row in questions(clip, seed=1)]
    [('asr', 'yes'), ('gender', 'the speaker is female')]
    """
    rows: list[dict[str, Any]] = []
    forms = WORDINGS[wordings]

    def draw(purpose: str) -> random.Random:
        return random.Random(f"{seed} {clip.dataset} {clip.id} {purpose}")

    def ask(task: str, answer: str, sound: str = "", /, **fields: Any) -> None:
        question, form = draw(task).choice(forms.get(f"{task} {clip.language}", forms[task]))
        target = form.replace("{label}", answer)
        row = {"name": task, "task": task, "instruction": question.replace("{sound}", sound), "target": target}
        rows.append({**row, "references": [target], **fields})

    if clip.text is not None:
        ask("asr", clip.text)
    if clip.gender is not None:
        ask("gender", clip.gender, label=clip.gender, labels=["male", "female"])
    if clip.age is not None:
        ask("age", str(clip.age), label=str(clip.age), age=clip.age)
    classes = {}
    for task, label, choices in clip.labels:
        if task == "sound_class":
            classes = {"label": label, "labels": list(choices)}  # classes that a caption may be mapped to
        ask(task, label, label=label, **({"labels": list(choices)} if choices else {}))
    if clip.captions:
        ask("caption", draw("caption target").choice(clip.captions), references=list(clip.captions), **classes)
    if clip.events:
        sounds = list(dict.fromkeys(event.sound for event in clip.events))
        ask("sounds", "; ".join(sounds), sounds=sounds)  # AudioSet's names contain commas
    timed = sorted((event for event in clip.events if event.start is not None), key=lambda event: event.start)
    if timed:
        sound = draw("event_time sound").choice(sorted({event.sound for event in timed}))
        ask("event_time", "; ".join(_times(event) for event in timed if event.sound == sound), sound)
        ask("timeline", "; ".join(f"{event.sound} {_times(event)}" for event in timed))
    if len(timed) > 1 and timed[1].start - timed[0].start >= 0.2:  # the order of closer ones is not audible
        ask("first_sound", timed[0].sound, label=timed[0].sound, labels=sorted({event.sound for event in timed}))
    for number, (question, answers, choices, task) in enumerate(clip.questions, start=1):
        # The most frequent answer, and the first of them at a tie.
        target = max(dict.fromkeys(answers), key=answers.count)
        closed = {"label": target, "labels": list(choices)} if choices else {}
        row = {"name": f"{task}{number}", "task": task, "instruction": question, "target": target}
        rows.append({**row, "references": list(answers), **closed})
    return rows


def _times(event: Event) -> str:
    return f"{event.start:.1f} s" if event.end is None else f"{event.start:.1f}-{event.end:.1f} s"
