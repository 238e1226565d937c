"""Questions about what is said, made from a transcript: a word, the number of words, a place, a spelling."""

import random
from collections.abc import Sequence

from data_prep.clips import Clip, Question
from data_prep.wordings import TRANSCRIPT_QUESTIONS

_YES_NO = ("yes", "no")
_PLACES = ("first", "second", "third", "fourth", "fifth")
# Counting further is a matter of arithmetic and not of listening.
_MAX_COUNT = 12


def transcript_questions(clip: Clip, words: Sequence[str], seed: int, count: int) -> tuple[Question, ...]:
    """Questions of different kinds that the clip's transcript can answer.

    Parameters
    ----------
    clip : Clip
        A clip with a transcript of plain words; one without has no questions.
    words : sequence of str
        Running words of the corpus. Those that a clip is asked for and does not contain are drawn from it, as often as
        they occur, so that a frequent word is not a sign of a "yes".
    seed : int
        The questions depend on it and on the clip.
    count : int
        Number of questions, at most four.

    Examples
    --------
    >>> from pathlib import Path
    >>> clip = Clip("AN4", "an1", Path("an1.wav"), "train", "fash", text="go home")
    >>> for question in transcript_questions(clip, ["tree"], seed=1, count=4):
    ...     print(question.task, question.question, *question.answers)
    word_place Say only the last word. home
    spelling Spell the last word letter by letter. h o m e
    word_said Can you hear the word "tree"? no
    word_count Count the words. 2
    """
    said = (clip.text or "").split()
    if not said:
        return ()
    rng = random.Random(f"{seed} {clip.dataset} {clip.id} transcript questions")

    def ask(task: str, answer: str, word: str = "", place: str = "", choices: tuple[str, ...] = ()) -> Question:
        question = rng.choice(TRANSCRIPT_QUESTIONS[task])
        return Question(question.replace("{word}", word).replace("{place}", place), (answer,), choices, task)

    other = next((word for word in rng.choices(words, k=20) if word not in said), None)
    if other is None or rng.random() < 0.5:
        questions = [ask("word_said", "yes", rng.choice(said), choices=_YES_NO)]
    else:
        questions = [ask("word_said", "no", other, choices=_YES_NO)]
    if len(said) <= _MAX_COUNT:
        questions.append(ask("word_count", str(len(said))))
    places = [*zip(_PLACES, said), ("last", said[-1])]
    place, word = rng.choice(places)
    questions.append(ask("word_place", word, place=place))
    if spelled := [(place, word) for place, word in places if word.isalpha() and 1 < len(word) <= 10]:
        place, word = rng.choice(spelled)
        questions.append(ask("spelling", " ".join(word), place=place))
    return tuple(rng.sample(questions, min(count, len(questions))))
