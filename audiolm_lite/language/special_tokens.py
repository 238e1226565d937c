"""Text of a template that looks like special tokens of another LLM."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

# Spellings of special tokens of published LLMs: <|eot_id|>, </s>, <start_of_turn>, <<SYS>>, [INST] ...
_LIKE_SPECIAL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|</?s>|<</?SYS>>|<(?:start|end)_of_\w+>|<(?:bos|eos|pad|unk|sep|cls|mask)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|BEGIN_AUDIO|TRANSCRIBE)\]"
)


def foreign_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Find what looks like a special token in a template's texts and is none of this tokenizer.

    Text that the tokenizer's own chat template contains is not reported: some LLMs write their marks as ordinary text.

    Parameters
    ----------
    texts : iterable of str
    tokenizer : PreTrainedTokenizerBase

    Returns
    -------
    dict
        The text -> the ordinary pieces that it becomes.

    Examples
    --------
    >>> from transformers import ByT5Tokenizer
    >>> foreign_tokens(["<|user|>hello</s>"], ByT5Tokenizer())
    {'<|user|>': ['<', '|', 'u', 's', 'e', 'r', '|', '>']}
    """
    own = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    chat_template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    found = dict.fromkeys(name for text in texts for name in _LIKE_SPECIAL.findall(text))
    return {name: tokenizer.tokenize(name) for name in found if name not in own and name not in chat_template}
