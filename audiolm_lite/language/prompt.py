"""Prompt templates: strings with slots that become token ids with audio slots, and labels of the answers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import UserError
from audiolm_lite.language.chat import ChatTemplateError, render_chat
from audiolm_lite.language.special_tokens import foreign_tokens
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE

AUDIO_MARK = "<audio>"  # position of the next clip within an instruction
_FIELDS = {"answer": "target"}  # slots whose manifest field has another name
_NAMED_TOKENS = 8  # special tokens of the tokenizer that a message names
_UNWRAPPED = ("bos", "eos", "turn", "chat", "answer")  # slots that take no text around them


class PromptError(UserError, ValueError):
    """A template that is not valid, or a row that does not fit it."""


class Piece(NamedTuple):
    """Literal text of a template, or a slot that is filled from a row.

    Attributes
    ----------
    kind : {"text", "literal", "slot"}
        "literal": text that is not checked for special tokens of other LLMs.
    value : str
        The text, or the name of the slot.
    turn : int
        Turn of the conversation that the piece belongs to.
    supervised : bool
        Whether its tokens are labels.
    wrap : tuple of str, optional
        Text before and after each clip of the audio slot, or before and after a field, which is then optional. Chat
        slot: system prompt.
    """

    kind: str
    value: str
    turn: int = 0
    supervised: bool = False
    wrap: tuple[str, str] | None = None


class PromptTemplate:
    r"""A prompt as one string, e.g. ``"{bos}USER: {audio}\n{instruction}\nASSISTANT: {answer}{eos}"``.

    Slots are ``{bos}``, ``{eos}``, ``{audio}``, ``{answer}`` and any manifest field; ``{{`` and ``}}`` are literal
    braces. ``{audio:<Speech>*</Speech>}`` adds text around each clip. Only answers and their end tokens are supervised.
    Each literal text and each slot is tokenized separately, so that the ids before the answer are the same in training
    and in generation.

    *Optional fields.* ``{transcript:Heard: *\n}`` adds text around a field. The slot and its text are omitted for rows
    in which the field is missing, null or blank. ``{transcript}`` without ``*`` needs the field in every row.

    *Conversations.* The turns of a row's ``history`` come before its own turn. The template after ``{turn}`` is
    repeated for each turn. All clips are in the first turn, unless ``<audio>`` in instructions gives their positions.

    *Special tokens* of the LLM may be part of the text. Those of another LLM are an error (`check_special_tokens`),
    unless ``{literal:<|user|>}`` marks them as plain text.

    *Chat templates.* ``"{chat:You understand sound.}{audio}{instruction}"`` uses the chat template of the LLM's
    tokenizer with this system prompt (``{chat}``: the default system prompt of the chat template, if it has one;
    ``{chat:}``: none). The rest of the string is the user message of each turn.

    Parameters
    ----------
    template : str

    Raises
    ------
    PromptError
        The template has a slot that is not valid, not exactly one audio slot, or does not end with the answer.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "what?": 2, "dog": 3}))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    >>> template = PromptTemplate("{bos}{audio}{instruction}{answer}{eos}")
    >>> ids, labels = template.encode({"instruction": "what?", "target": "dog"}, tokenizer, audio_tokens=2)
    >>> ids
    [0, -1, -1, 2, 3, 1]
    >>> labels
    [-100, -100, -100, -100, 3, 1]
    """

    def __init__(self, template: str):
        self.template = template
        pieces = _parse(template)
        self.system: str | None = None
        self.chat = bool(pieces) and pieces[0].value == "chat" and pieces[0].kind == "slot"
        if self.chat:
            system = pieces.pop(0).wrap
            # The parser does not distinguish {chat:} from {chat}.
            self.system = system[0] if system else "" if template.startswith("{chat:}") else None
        slots = [piece.value for piece in pieces if piece.kind == "slot"]
        for name in ("audio",) if self.chat else ("audio", "answer"):
            if slots.count(name) != 1:
                raise PromptError(f"template {template!r}: needs {{{name}}} once, has it {slots.count(name)} times.")
        if self.chat and {"answer", "bos", "eos", "turn"}.intersection(slots):
            raise PromptError(
                f"template {template!r}: after {{chat}} follows the user message only; remove {{answer}}, {{bos}}, "
                "{eos} and {turn}, which the chat template adds."
            )
        if "chat" in slots:
            raise PromptError(f"template {template!r}: {{chat}} must be the first slot.")
        if slots.count("turn") > 1:
            raise PromptError(f"template {template!r}: {{turn}} marks the beginning of a turn; write it once.")
        if not self.chat and [piece.value for piece in pieces[-2:] if piece.kind == "slot"] != ["answer", "eos"]:
            raise PromptError(
                f"template {template!r}: must end with {{answer}}{{eos}}, so that the model learns to stop."
            )
        begin = next((i for i, piece in enumerate(pieces) if piece.value == "turn" and piece.kind == "slot"), None)
        self.repeats = self.chat or begin is not None
        self._head = pieces[:begin] if begin is not None else []
        self._turn = pieces if begin is None else pieces[begin + 1 :]
        if any(piece.kind == "slot" and piece.value in ("audio", "answer") for piece in self._head):
            raise PromptError(f"template {template!r}: {{audio}} and {{answer}} must follow {{turn}}.")

    @property
    def asks(self) -> bool:
        """Whether the model receives a question; a template without ``{instruction}`` is for one task only."""
        return "instruction" in self.slots

    @property
    def slots(self) -> set[str]:
        """Names of the slots, without `{turn}` and `{chat}`."""
        return {piece.value for piece in (*self._head, *self._turn) if piece.kind == "slot"}

    @property
    def fields(self) -> list[str]:
        """Manifest fields whose text is part of the prompt."""
        return [*sorted(self.slots - {*_UNWRAPPED, "audio"}), "target"]

    def pieces(self, turns: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """All pieces of a conversation of `turns` turns, including those of the tokenizer's chat template."""
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
        """Encode one row.

        Parameters
        ----------
        row : dict
            A manifest row.
        tokenizer : PreTrainedTokenizerBase
            Tokenizer of the LLM, called without its own special tokens.
        audio_tokens : int or sequence of int
            Number of audio tokens of the clip, or of each of several clips in reading order.
        with_answer : bool
            False: without the last answer and its end, as the prompt for generation.
        cut : tuple of str and int
            Field of a row that is too long, and the number of tokens to drop at the end of the field.

        Returns
        -------
        input_ids : list of int
            AUDIO_SLOT at the positions of audio tokens.
        labels : list of int
            Ids of answers and their end tokens, IGNORE elsewhere; not shifted.

        Raises
        ------
        PromptError
            A field is missing or too short to be cut, the tokenizer has no begin or end token, the number of clips
            differs from that of their marks, or text of the row would become a special token.
        """
        turns = [*row.get("history", []), row]
        if len(turns) > 1 and not self.repeats:
            raise PromptError(
                f'row "{row.get("id")}" has a history, and the template has no {{turn}}: put {{turn}} at the beginning '
                "of a turn."
            )
        clips = [audio_tokens] if isinstance(audio_tokens, int) else list(audio_tokens)
        marks = sum(str(turn.get("instruction", "")).count(AUDIO_MARK) for turn in turns)
        if marks not in (0, len(clips)):
            raise PromptError(
                f'row "{row.get("id")}": {marks} {AUDIO_MARK} marks in its instructions for {len(clips)} clips; write '
                "one mark per clip, or none."
            )
        if cut[1] and cut[0] == "instruction" and marks:
            raise PromptError(
                f'row "{row.get("id")}" is too long by {cut[1]} tokens, and its instruction cannot be cut, because '
                f"{AUDIO_MARK} marks in instructions give the positions of clips; cut another field, or drop the row."
            )
        pieces, last = self.pieces(len(turns), tokenizer), len(turns) - 1
        if not with_answer:
            answers = [index for index, piece in enumerate(pieces) if (piece.kind, piece.value) == ("slot", "answer")]
            pieces = pieces[: answers[-1]]
            cut = ("", 0) if cut[0] == "target" else cut  # the prompt has no answer that could be cut
        slots = {_FIELDS.get(p.value, p.value) for p in pieces if p.kind == "slot" and p.turn == last}
        if cut[1] and cut[0] not in slots:
            raise PromptError(
                f'row "{row.get("id")}" is too long by {cut[1]} tokens, and the prompt has no field "{cut[0]}" to cut; '
                "choose a field of the template."
            )
        ids: list[int] = []
        labels: list[int] = []
        for piece in pieces:
            fields = row if piece.turn == last else {**row, **turns[piece.turn]}
            if piece.kind != "slot":
                new = _encode_text(piece.value, tokenizer)
            elif piece.value == "audio":
                new = [] if marks or piece.turn else _clips(piece, clips, tokenizer, take=len(clips))
            elif piece.value in ("bos", "eos"):
                new = [_special(tokenizer, piece.value)]
            elif piece.value == "instruction" and marks:
                new = self._marked_instruction(fields, clips, tokenizer)
                new = _wrapped(piece, new, tokenizer) if new else []
            else:
                blank = piece.wrap is not None and _is_blank(fields.get(piece.value))
                new = [] if blank else _encode_field(fields, piece.value, tokenizer)
                if cut[1] and piece.turn == last and _FIELDS.get(piece.value, piece.value) == cut[0]:
                    new = _cut(new, cut, row)
                new = [] if blank else _wrapped(piece, new, tokenizer)
            ids += new
            labels += new if piece.supervised and with_answer else [IGNORE] * len(new)
        return ids, labels

    def check_special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a template that was written for another LLM, whose special tokens would become ordinary text.

        Raises
        ------
        PromptError
            Text of the template looks like a special token, and the tokenizer has no such token.
        """
        parts = [piece for piece in (*self._head, *self._turn) if piece.kind != "literal"]
        texts = [text for piece in parts for text in (piece.wrap or (piece.value if piece.kind == "text" else "",))]
        foreign = foreign_tokens([*texts, self.system or ""], tokenizer)
        if foreign:
            listed = "; ".join(f"{name} would become {' '.join(pieces)}" for name, pieces in foreign.items())
            own = ", ".join(tokenizer.all_special_tokens[:_NAMED_TOKENS])
            chat = "begin it with {chat}, which is the tokenizer's own format" if tokenizer.chat_template else ""
            raise PromptError(
                f"template {self.template!r} has special tokens that this LLM's tokenizer lacks: {listed}. Write the "
                f"template with its own ({own}){chat and ', or ' + chat}; {{literal:...}} keeps them as plain text."
            )

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Token ids that end an answer."""
        if not self.chat:
            return {_special(tokenizer, "eos")}
        return {tokenizer.encode(self.pieces(1, tokenizer)[-1].value, add_special_tokens=False)[-1]}

    def _marked_instruction(self, fields: Mapping, clips: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Encode an instruction with clips at its marks; removes these clips from the front of `clips`."""
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
        if slot == "literal" and spec and "{" not in spec and not conversion:
            pieces.append(Piece("literal", spec))
            continue
        wrap: tuple[str, str] | None = None
        if slot not in _UNWRAPPED and spec and spec.count("*") == 1 and "{" not in spec:
            before, after = spec.split("*")
            wrap, spec = (before, after), ""
        elif slot == "chat" and not pieces and spec:
            wrap, spec = (spec, ""), ""
        if not slot.isidentifier() or spec or conversion:
            raise PromptError(
                f"template {template!r}: a slot is a plain field name, {{field:before*after}} with one * and no "
                "braces or, as the first slot, {chat:system prompt}; not "
                f"{{{slot}{conversion and '!' + conversion or ''}{spec and ':' + spec}}}."
            )
        pieces.append(Piece("slot", slot, wrap=wrap))
    return pieces


@lru_cache(maxsize=64)
def _chat_pieces(template: PromptTemplate, turns: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Pieces of a conversation in the tokenizer's chat template; the first special token after an answer ends it."""
    try:
        rendered = render_chat(tokenizer, template.system, turns)
    except ChatTemplateError as error:
        raise PromptError(f"template {template.template!r}: {error}") from None
    pieces = []
    for turn, (before_user, before_answer, end) in enumerate(rendered):
        message = [piece._replace(turn=turn) for piece in template._turn]
        pieces += [Piece("text", before_user, turn)] if before_user else []
        pieces += [*message, Piece("text", before_answer, turn)]
        pieces += [Piece("slot", "answer", turn, supervised=True), Piece("text", end, turn, supervised=True)]
    return pieces


def _clips(piece: Piece, clips: list[int], tokenizer: PreTrainedTokenizerBase, take: int) -> list[int]:
    """Audio slots of the next `take` clips, each with the template's text before and after it."""
    return [token for _ in range(take) for token in _wrapped(piece, [AUDIO_SLOT] * clips.pop(0), tokenizer)]


def _wrapped(piece: Piece, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a slot's content between those of the template's text around the slot."""
    before, after = (_encode_text(text, tokenizer) for text in piece.wrap or ("", ""))
    return [*before, *ids, *after]


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize text of the template, in which the author may name special tokens, e.g. "<|start_header_id|>"."""
    return tokenizer.encode(text, add_special_tokens=False) if text else []


def _cut(ids: list[int], cut: tuple[str, int], row: Mapping[str, Any]) -> list[int]:
    field, tokens = cut
    if tokens >= len(ids):
        raise PromptError(
            f'row "{row.get("id")}": is too long by {tokens} tokens, and its field "{field}" has only {len(ids)}; '
            "drop the row, or raise the limit."
        )
    return ids[:-tokens]


def _special(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    token = getattr(tokenizer, f"{name}_token_id")
    if token is None:
        raise PromptError(f"the template has {{{name}}}, and the tokenizer has no such token; remove the slot.")
    return token


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that must not result from text, computed once per tokenizer; text may contain the unknown token."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return frozenset(special.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def _is_blank(value: Any) -> bool:
    return value is None or not str(value).strip()


def _encode_field(row: Mapping[str, Any], slot: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize a field as plain text: a transcript that contains "</s>" must not end the turn."""
    field = _FIELDS.get(slot, slot)
    if row.get(field) is None:
        remedy = "." if slot in _UNWRAPPED else f", or make the slot optional with {{{slot}:text before*text after}}."
        raise PromptError(
            f'row "{row.get("id")}": the template has {{{slot}}}, and the row has no field "{field}"; add it{remedy}'
        )
    ids = tokenizer.encode(str(row[field]), add_special_tokens=False, split_special_tokens=True)
    # Some vocabularies merge ordinary pieces into a special token.
    special = _special_ids(tokenizer).intersection(ids)
    if special:
        tokens = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special)))
        raise PromptError(
            f'row "{row.get("id")}", field "{field}": its text becomes the special token {tokens}; change it.'
        )
    return ids
