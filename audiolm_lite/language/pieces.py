"""Token ids of a text as it stands inside a sentence."""

from transformers import PreTrainedTokenizerBase

_BEFORE = "a"  # a word before the text; any that a tokenizer separates from the next one


def pieces_inside(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a text as it stands after another word.

    Most vocabularies have a piece for a word with the space before it. Without that space, a word alone is spelled from
    other pieces than the same word inside a sentence. Vocabularies in which the space is a piece of its own, or in
    which there is none, give the pieces of the text alone.

    Parameters
    ----------
    text : str
        Without spaces around it.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.

    Returns
    -------
    list of int
        Token ids without special tokens; empty for an empty text.

    Examples
    --------
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> backend = Tokenizer(models.BPE({"a": 0, "n": 1, "Ġ": 2, "Ġa": 3, "an": 4, "Ġan": 5}, [("Ġ", "a"), ("Ġa", "n")]))
    >>> backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    >>> tokenizer.encode("an"), pieces_inside("an", tokenizer)
    ([0, 1], [5])
    """
    alone = list(tokenizer.encode(text, add_special_tokens=False))
    if not alone:
        return alone
    before, space, inside = (
        list(tokenizer.encode(_BEFORE + after, add_special_tokens=False)) for after in ("", " ", f" {text}")
    )
    prefix, inside = inside[: len(before)], inside[len(before) :]
    if prefix != before or not inside or inside == space[len(before) :] + alone:
        return alone
    return inside
