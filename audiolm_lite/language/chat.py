"""A tokenizer's chat template, taken apart into the texts between what is said."""

import re

from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import UserError

# Marks from Unicode's private use area stand for what user and assistant say, since no template touches these.
_USER, _ANSWER = "\ue000", "\ue001"
# Some templates write today's date into the system prompt; a prompt must not change overnight.
_DATE = "26 Jul 2024"


class ChatTemplateError(UserError, ValueError):
    """A chat template that is not there or cannot be taken apart."""


def render_chat(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: int) -> list[tuple[str, str, str]]:
    """Texts of a conversation that are the same whatever is said.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    system : str, optional
        System prompt; the template's own, if it has one, without.
    turns : int
        How often the user speaks and is answered.

    Returns
    -------
    list of (before_user, before_answer, end)
        For each turn: the text before the user's words, that between them and the answer, and what ends the answer, up
        to and with the first special token. Text after that belongs to the next turn.

    Raises
    ------
    ChatTemplateError
        No chat template, one that refuses the system prompt or changes the words, or no special token after an answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError("this tokenizer has no chat template; write the whole prompt as a template instead.")
    messages = [{"role": "system", "content": system}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, date_string=_DATE)
    except Exception as error:  # whatever the template's author raises, in Jinja's own exceptions
        raise ChatTemplateError(f"the tokenizer's chat template refuses this conversation ({error}).") from error
    parts = re.split(f"([{_USER}{_ANSWER}])", text)
    if parts[1::2] != [_USER, _ANSWER] * turns:
        raise ChatTemplateError("the tokenizer's chat template changes or leaves out what is said; it cannot be used.")
    between = parts[0::2]  # before user 1, before answer 1, before user 2, ..., after the last answer
    special = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    ends = re.compile("|".join(map(re.escape, special)) or r"(?!)")
    result, rest = [], between[0]
    for turn in range(turns):
        after = between[2 * turn + 2]
        end = ends.search(after)
        if end is None:
            raise ChatTemplateError("the tokenizer's chat template ends an answer without a special token.")
        result.append((rest, between[2 * turn + 1], after[: end.end()]))
        rest = after[end.end() :]
    return result
