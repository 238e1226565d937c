"""The fixed texts in a tokenizer's chat template: everything except the messages of user and assistant."""

import re

from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import UserError

# Placeholders of user messages and answers, from Unicode's private use area: no template changes them.
_USER, _ANSWER = "\ue000", "\ue001"
# Some templates write the current date into the system prompt. Prompts must not depend on the day.
_DATE = "26 Jul 2024"


class ChatTemplateError(UserError, ValueError):
    """A chat template that is missing or cannot be split."""


def render_chat(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: int) -> list[tuple[str, str, str]]:
    """Split a conversation in the tokenizer's chat template into the texts around its messages.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Tokenizer with a chat template.
    system : str, optional
        System prompt; None: that of the template, if it has one; "": none, even if the template has one.
    turns : int
        Pairs of a user message and an answer.

    Returns
    -------
    list of (before_user, before_answer, end)
        Per turn: the text before the user message, the text between it and the answer, and the end of the answer up to
        and including the first special token. The text after that token is part of the next turn.

    Raises
    ------
    ChatTemplateError
        The tokenizer has no chat template, or its template raises an error, changes messages, has no special token
        after an answer, or has a system prompt that cannot be dropped.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end> {% endfor %}"
    >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1}, "<unk>"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", chat_template=template)
    >>> render_chat(tokenizer, None, 1)
    [('user: ', '<end> assistant: ', '<end>')]
    """
    if system == "":
        first, *further = _render(tokenizer, None, max(turns, 2))
        return [(_without_system(tokenizer, first[0], further[0][0]), *first[1:]), *further][:turns]
    return _render(tokenizer, system, turns)


def _without_system(tokenizer: PreTrainedTokenizerBase, first: str, later: str) -> str:
    """Drop the system prompt from the text before the first user message; `later` is that before the second one."""
    begin, later = tokenizer.bos_token or "", later.lstrip()
    if later.startswith(begin) or not first.startswith(begin):
        begin = ""
    if not first.endswith(later):
        raise ChatTemplateError(
            f"the system prompt of the tokenizer's chat template cannot be dropped: {first!r} begins the first message "
            f"and {later!r} the others; write the complete prompt as a template, or {{chat}} to keep the system prompt."
        )
    return begin + later


def _render(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: int) -> list[tuple[str, str, str]]:
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError("the tokenizer has no chat template; write the complete prompt as a template instead.")
    messages = [{"role": "system", "content": system}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, date_string=_DATE)
    except Exception as error:  # templates raise errors of several classes of Jinja
        raise ChatTemplateError(
            f"the tokenizer's chat template does not accept this conversation ({error})."
        ) from error
    split = re.split(f"([{_USER}{_ANSWER}])", text)
    if split[1::2] != [_USER, _ANSWER] * turns:
        raise ChatTemplateError("the tokenizer's chat template changes or drops messages; it cannot be used.")
    between = split[0::2]  # before user 1, before answer 1, before user 2, ..., after the last answer
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
