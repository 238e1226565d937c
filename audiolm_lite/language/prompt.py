"""Prompt templates: one string with slots, turned into token ids with audio slots and supervision on the answer."""

from functools import lru_cache
from string import Formatter

from transformers import PreTrainedTokenizerBase

AUDIO_SLOT = -1  # input id of a position that an audio token fills
IGNORE = -100  # label of a position without supervision
_FIELDS = {"answer": "target"}  # slots whose manifest field has another name


class PromptError(ValueError):
    """A template, or a row for it, that cannot become a prompt."""


class PromptTemplate:
    r"""A prompt as one string, e.g. ``"{bos}USER: {audio}\n{instruction}\nASSISTANT: {answer}{eos}"``.

    Slots are ``{bos}``, ``{eos}``, ``{audio}`` (once), ``{answer}`` and any manifest field; ``{{`` and ``}}`` are
    literal braces. The template ends with ``{answer}{eos}``, which alone are supervised. Each literal piece and each
    slot is tokenised on its own: the ids before the answer are then the same in training and in generation.

    Parameters
    ----------
    template : str

    Raises
    ------
    PromptError
        The template has an unknown form of slot, no audio, more than one, or another end.
    """

    def __init__(self, template: str):
        self.template = template
        self.pieces: list[tuple[str, str]] = []  # ("text", literal) or ("slot", name)
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise PromptError(f"template {template!r}: {error}; write literal braces as {{{{ and }}}}.") from None
        for literal, slot, spec, conversion in parsed:
            if literal:
                self.pieces.append(("text", literal))
            if slot is not None:
                if not slot.isidentifier() or spec or conversion:
                    raise PromptError(f"template {template!r}: a slot is a plain field name, not {{{slot}}}.")
                self.pieces.append(("slot", slot))
        slots = [name for kind, name in self.pieces if kind == "slot"]
        for name in ("audio", "answer"):
            if slots.count(name) != 1:
                raise PromptError(f"template {template!r}: needs {{{name}}} once, has it {slots.count(name)} times.")
        if self.pieces[-2:] != [("slot", "answer"), ("slot", "eos")]:
            raise PromptError(
                f"template {template!r}: must end with {{answer}}{{eos}}, so that the model learns to stop."
            )

    def encode(
        self, row: dict, tokenizer: PreTrainedTokenizerBase, audio_tokens: int, with_answer: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels of one row.

        Parameters
        ----------
        row : dict
            A manifest row.
        tokenizer : PreTrainedTokenizerBase
            The LLM's; asked for plain pieces, to which it adds no special tokens of its own.
        audio_tokens : int
            How many positions the audio takes.
        with_answer : bool
            False leaves out answer and end: the prompt to generate from.

        Returns
        -------
        input_ids : list of int
            AUDIO_SLOT at the audio's positions.
        labels : list of int
            Not shifted: the ids of answer and end, IGNORE elsewhere.

        Raises
        ------
        PromptError
            A field is missing, the tokenizer has no such token, or data would become a special token.
        """
        prompt: list[int] = []
        for kind, value in self.pieces[:-2]:
            if kind == "text":  # the template's author may name special tokens, e.g. "<|start_header_id|>"
                prompt += tokenizer.encode(value, add_special_tokens=False)
            elif value == "audio":
                prompt += [AUDIO_SLOT] * audio_tokens
            elif value in ("bos", "eos"):
                prompt.append(_special(tokenizer, value))
            else:
                prompt += _encode_field(row, value, tokenizer)
        if not with_answer:
            return prompt, [IGNORE] * len(prompt)
        answer = [*_encode_field(row, "answer", tokenizer), _special(tokenizer, "eos")]
        return prompt + answer, [IGNORE] * len(prompt) + answer


def _special(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    token = getattr(tokenizer, f"{name}_token_id")
    if token is None:
        raise PromptError(f"the template has {{{name}}}, and this tokenizer has no such token: leave the slot out.")
    return token


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that no plain text may have, listed once a tokenizer; the unknown token is what plain text may well have."""
    added = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(added.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def _encode_field(row: dict, slot: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise data as plain text: a transcript with "</s>" in it must not end the turn."""
    field = _FIELDS.get(slot, slot)
    if row.get(field) is None:
        raise PromptError(f'row "{row.get("id")}": the template has {{{slot}}}, and the row has no field "{field}".')
    ids = tokenizer.encode(str(row[field]), add_special_tokens=False, split_special_tokens=True)
    # some vocabularies spell a special token out of ordinary pieces all the same
    found = _special_ids(tokenizer).intersection(ids)
    if found:
        tokens = ", ".join(tokenizer.convert_ids_to_tokens(sorted(found)))
        raise PromptError(
            f'row "{row.get("id")}", field "{field}": its text becomes the special token {tokens}; change it.'
        )
    return ids
