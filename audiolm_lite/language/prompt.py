"""Prompt templates: one string with slots, turned into token ids with audio slots and supervision on the answers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import UserError
from audiolm_lite.language.chat import ChatTemplateError, render_chat
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE

AUDIO_MARK = "<audio>"  # where, inside an instruction, the next clip stands
_FIELDS = {"answer": "target"}  # slots whose manifest field has another name


class PromptError(UserError, ValueError):
    """A template, or a row for it, that cannot become a prompt."""


class Piece(NamedTuple):
    """Part of a template: literal text, or a slot that a row fills.

    Attributes
    ----------
    kind : {"text", "slot"}
    value : str
        The text, or the slot's name.
    turn : int
        Turn of the conversation that fills it.
    supervised : bool
        Whether the model learns to say it.
    wrap : tuple of str
        For the audio slot: text before and after each clip.
    """

    kind: str
    value: str
    turn: int = 0
    supervised: bool = False
    wrap: tuple[str, str] = ("", "")


class PromptTemplate:
    r"""A prompt as one string, e.g. ``"{bos}USER: {audio}\n{instruction}\nASSISTANT: {answer}{eos}"``.

    Slots are ``{bos}``, ``{eos}``, ``{audio}``, ``{answer}`` and any manifest field; ``{{`` and ``}}`` are literal
    braces. ``{audio:<Speech>*</Speech>}`` puts text around each clip. Answers and what ends them alone are supervised.
    Each literal piece and each slot is tokenised on its own: the ids before the answer are then the same in training
    and in generation.

    *Conversations.* The turns of a row's ``history`` come before its own; what follows ``{turn}`` in the template is
    repeated for each. All clips stand in the first turn, unless instructions place them with ``<audio>``.

    *Chat templates.* ``"{chat:You understand sound.}{audio}{instruction}"`` uses the chat template of the LLM's
    tokenizer, with that system prompt (``{chat}``: none) and the rest as what the user says in each turn.

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
        pieces = _parse(template)
        self.system: str | None = None
        self.chat = bool(pieces) and pieces[0].value == "chat" and pieces[0].kind == "slot"
        if self.chat:
            self.system = pieces.pop(0).wrap[0] or None
        slots = [piece.value for piece in pieces if piece.kind == "slot"]
        for name in ("audio",) if self.chat else ("audio", "answer"):
            if slots.count(name) != 1:
                raise PromptError(f"template {template!r}: needs {{{name}}} once, has it {slots.count(name)} times.")
        if self.chat and {"answer", "bos", "eos", "turn"}.intersection(slots):
            raise PromptError(
                f"template {template!r}: after {{chat}} comes what the user says; answers, their ends and turns come "
                "from the chat template."
            )
        if "chat" in slots:
            raise PromptError(f"template {template!r}: {{chat}} comes first of all.")
        if slots.count("turn") > 1:
            raise PromptError(f"template {template!r}: {{turn}} marks where a turn begins; write it once.")
        if not self.chat and [piece.value for piece in pieces[-2:] if piece.kind == "slot"] != ["answer", "eos"]:
            raise PromptError(
                f"template {template!r}: must end with {{answer}}{{eos}}, so that the model learns to stop."
            )
        begin = next((i for i, piece in enumerate(pieces) if piece.value == "turn" and piece.kind == "slot"), None)
        self.repeats = self.chat or begin is not None
        self._head = pieces[:begin] if begin is not None else []
        self._turn = pieces if begin is None else pieces[begin + 1 :]
        if any(piece.kind == "slot" and piece.value in ("audio", "answer") for piece in self._head):
            raise PromptError(f"template {template!r}: {{audio}} and {{answer}} stand after {{turn}}.")

    def pieces(self, turns: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """All pieces of a conversation of so many turns, with the tokenizer's chat template where it is used."""
        if self.chat:
            return _chat_pieces(self, turns, tokenizer)
        repeated = [
            piece._replace(turn=turn, supervised=index >= len(self._turn) - 2)
            for turn in range(turns)
            for index, piece in enumerate(self._turn)
        ]
        return self._head + repeated

    def encode(
        self,
        row: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        audio_tokens: int | Sequence[int],
        with_answer: bool = True,
        cut: tuple[str, int] = ("", 0),
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels of one row.

        Parameters
        ----------
        row : dict
            A manifest row.
        tokenizer : PreTrainedTokenizerBase
            The LLM's; asked for plain pieces, to which it adds no special tokens of its own.
        audio_tokens : int or sequence of int
            How many positions the clip takes, or each of several clips in the order in which they are read.
        with_answer : bool
            False leaves out the last answer and its end: the prompt to generate from.
        cut : tuple of str and int
            A field of the row and how many tokens to leave out at its end, where the row is too long.

        Returns
        -------
        input_ids : list of int
            AUDIO_SLOT at the audio's positions.
        labels : list of int
            Not shifted: the ids of answers and their ends, IGNORE elsewhere.

        Raises
        ------
        PromptError
            A field is missing or too short to be cut, the tokenizer has no such token, clips do not fit their marks, or
            data would become a special token.
        """
        turns = [*row.get("history", []), row]
        if len(turns) > 1 and not self.repeats:
            raise PromptError(
                f'row "{row.get("id")}" has a history, and the template does not say what a turn is: put {{turn}} '
                "where one begins."
            )
        clips = [audio_tokens] if isinstance(audio_tokens, int) else list(audio_tokens)
        marks = sum(str(turn.get("instruction", "")).count(AUDIO_MARK) for turn in turns)
        if marks not in (0, len(clips)):
            raise PromptError(
                f'row "{row.get("id")}": {marks} {AUDIO_MARK} marks in its instructions for {len(clips)} clips.'
            )
        pieces, last = self.pieces(len(turns), tokenizer), len(turns) - 1
        if not with_answer:
            answers = [index for index, piece in enumerate(pieces) if (piece.kind, piece.value) == ("slot", "answer")]
            pieces = pieces[: answers[-1]]
        slots = {_FIELDS.get(p.value, p.value) for p in pieces if p.kind == "slot" and p.turn == last}
        if cut[1] and cut[0] not in slots:
            raise PromptError(
                f'row "{row.get("id")}" is too long by {cut[1]} tokens, and the prompt has no field "{cut[0]}" to cut.'
            )
        ids: list[int] = []
        labels: list[int] = []
        for piece in pieces:
            fields = row if piece.turn == last else {**row, **turns[piece.turn]}
            if piece.kind == "text":  # the template's author may name special tokens, e.g. "<|start_header_id|>"
                new = tokenizer.encode(piece.value, add_special_tokens=False)
            elif piece.value == "audio":
                new = [] if marks or piece.turn else _clips(piece, clips, tokenizer, take=len(clips))
            elif piece.value in ("bos", "eos"):
                new = [_special(tokenizer, piece.value)]
            elif piece.value == "instruction" and marks:
                new = self._marked_instruction(fields, clips, tokenizer)
            else:
                new = _encode_field(fields, piece.value, tokenizer)
                if cut[1] and piece.turn == last and _FIELDS.get(piece.value, piece.value) == cut[0]:
                    new = _cut(new, cut, row)
            ids += new
            labels += new if piece.supervised and with_answer else [IGNORE] * len(new)
        return ids, labels

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Ids that end an answer."""
        if not self.chat:
            return {_special(tokenizer, "eos")}
        return {tokenizer.encode(self.pieces(1, tokenizer)[-1].value, add_special_tokens=False)[-1]}

    def _marked_instruction(self, fields: Mapping, clips: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Instruction with its clips in place; takes these from the front of `clips`."""
        audio = next(piece for piece in self._turn if piece.value == "audio")
        ids: list[int] = []
        for number, text in enumerate(fields["instruction"].split(AUDIO_MARK)):
            if number:
                ids += _clips(audio, clips, tokenizer, take=1)
            if text:
                ids += _encode_field({**fields, "instruction": text}, "instruction", tokenizer)
        return ids


def _parse(template: str) -> list[Piece]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise PromptError(f"template {template!r}: {error}; write literal braces as {{{{ and }}}}.") from None
    pieces = []
    for literal, slot, spec, conversion in parsed:
        if literal:
            pieces.append(Piece("text", literal))
        if slot is None:
            continue
        wrap: tuple[str, str] = ("", "")
        if slot == "audio" and spec and spec.count("*") == 1:
            before, after = spec.split("*")
            wrap, spec = (before, after), ""
        elif slot == "chat" and not pieces:
            wrap, spec = (spec or "", ""), ""
        if not slot.isidentifier() or spec or conversion:
            raise PromptError(
                f"template {template!r}: a slot is a plain field name, {{audio:before*after}} or, first of all, "
                f"{{chat:system prompt}}; not {{{slot}{conversion and '!' + conversion or ''}{spec and ':' + spec}}}."
            )
        pieces.append(Piece("slot", slot, wrap=wrap))
    return pieces


@lru_cache(maxsize=64)
def _chat_pieces(template: PromptTemplate, turns: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """A conversation through the tokenizer's chat template; an answer ends with the first special token after it."""
    try:
        parts = render_chat(tokenizer, template.system, turns)
    except ChatTemplateError as error:
        raise PromptError(f"template {template.template!r}: {error}") from None
    pieces = []
    for turn, (before_user, before_answer, end) in enumerate(parts):
        said = [piece._replace(turn=turn) for piece in template._turn]
        pieces += [Piece("text", before_user, turn)] if before_user else []
        pieces += [*said, Piece("text", before_answer, turn)]
        pieces += [Piece("slot", "answer", turn, supervised=True), Piece("text", end, turn, supervised=True)]
    return pieces


def _clips(piece: Piece, clips: list[int], tokenizer: PreTrainedTokenizerBase, take: int) -> list[int]:
    """Slots of the next clips, each between the texts that the template puts around it."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) if text else [] for text in piece.wrap)
    return [token for _ in range(take) for token in [*before, *[AUDIO_SLOT] * clips.pop(0), *after]]


def _cut(ids: list[int], cut: tuple[str, int], row: Mapping[str, Any]) -> list[int]:
    field, tokens = cut
    if tokens >= len(ids):
        raise PromptError(
            f'row "{row.get("id")}": is too long by {tokens} tokens, and its field "{field}" has only {len(ids)}: '
            "drop the row, or raise the limit."
        )
    return ids[:-tokens]


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


def _encode_field(row: Mapping[str, Any], slot: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
