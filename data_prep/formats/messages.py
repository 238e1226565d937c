"""Conversations of ms-swift and LLaMA-Factory: JSON or JSON lines with messages or conversations, and audios."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from audiolm_lite.language.prompt import AUDIO_MARK
from data_prep.formats import FormatError, Report, Row, checked_rows, json_lines, read_json, rename_to_manifest

NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "audios": ("audios", "audio"),
    # Without messages: one question and answer, and the turns before it (Alpaca, and ms-swift's older form).
    "question": ("query", "instruction"),
    "answer": ("response", "output"),
    "language": ("language", "lang", "target_lang"),
}
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Message(NamedTuple):
    """Who says what, and the files of its clips where they are in the message itself."""

    role: str
    text: str
    clips: list[str]


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield a row per conversation: its last answer is the target, and the turns before it are the history.

    Clips after the first are `further_audio`; the marks <audio> stay in the questions, as in manifests. A system
    message is the field `system`, for the slot {system} of a prompt.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> question, answer = '{"role": "user", "content": "<audio>Who?"}', '{"role": "assistant", "content": "Ann"}'
    >>> _ = file.write_text(f'{{"messages": [{question}, {answer}], "audios": ["1.wav"]}}')
    >>> (row,) = read(file, Report(), {"dataset": "d", "split": "train", "task": "qa"})
    >>> row["audio"], row["instruction"], row["target"]
    ('1.wav', '<audio>Who?', 'Ann')
    """
    names = {**NAMES, **(fields or {})}
    entries, unit = _entries(path)
    return checked_rows(
        path, entries, lambda entry: _row(rename_to_manifest(entry, names, report)), report, defaults, unit=unit
    )


def _entries(path: Path) -> tuple[Iterator[tuple[int, Any]], str]:
    """Numbered conversations of a JSON list or of JSON lines, and what the numbers count."""
    try:
        with path.open("rb") as file:
            is_list = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; check the path") from error
    return (enumerate(read_json(path), start=1), "entry") if is_list else (json_lines(path), "line")


def _row(entry: Row) -> Row:
    listed = entry.pop("audios", [])
    messages = _messages(entry)
    systems = [message.text for message in messages if message.role == "system"]
    if len(systems) > 1 or (systems and messages[0].role != "system"):
        raise FormatError('field "messages": a system message must be the first one, and the only one')
    turns = messages[len(systems) :]
    for number, (message, role) in enumerate(zip(turns, ("user", "assistant") * len(turns)), start=1):
        if message.role != role:
            raise FormatError(
                f'field "messages": message {number} after the system message is of the {message.role}, not of the '
                f"{role}; questions and answers must alternate"
            )
    if not turns or len(turns) % 2:
        raise FormatError('field "messages": the last message is not an answer; add one, or remove the row')
    if not turns[-1].text.strip():
        raise FormatError('field "messages": the last answer is empty; write one, or remove the row')
    clips = _clips("audios", listed) + [clip for message in messages for clip in message.clips]
    if not clips:
        raise FormatError('field "audios": no audio; list its files, or remove the row')
    _check_marks(messages, len(clips))
    for name in ("images", "videos"):
        if entry.get(name):
            raise FormatError(f'field "{name}": only audio can be used; remove the row')
    history = [
        {"instruction": question.text, "target": answer.text} for question, answer in zip(turns[:-2:2], turns[1:-2:2])
    ]
    row = {"audio": clips[0], "instruction": turns[-2].text, "target": turns[-1].text}
    row |= {"further_audio": [{"audio": clip} for clip in clips[1:]]} if clips[1:] else {}
    row |= {"history": history} if history else {}
    row |= {"system": systems[0]} if systems else {}
    if isinstance(entry.get("id"), int):
        entry["id"] = str(entry["id"])
    return {**entry, **row}


def _messages(entry: Row) -> list[Message]:
    """Take the messages of a conversation from its entry, in any of the forms."""
    system = entry.pop("system", None)
    before = [Message("system", _text("system", system), [])] if system else []
    if "messages" in entry:
        found = entry.pop("messages")
        if not isinstance(found, list):
            raise FormatError(f'field "messages": {found!r:.80} is not a list of messages')
        return before + [_message(message) for message in found]
    if "question" not in entry or "answer" not in entry:
        raise FormatError(
            'no field "messages" or "conversations", nor "query" and "response" or "instruction" and "output"; check '
            "the format"
        )
    history = entry.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise FormatError('field "history": write a list of pairs, a question and its answer')
    question, further = _text("instruction", entry.pop("question")), _text("input", entry.pop("input", None) or "")
    turns = [*history, ["\n".join(filter(None, (question, further))), entry.pop("answer")]]
    return before + [
        Message(role, _text("history", text), []) for turn in turns for role, text in zip(("user", "assistant"), turn)
    ]


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise FormatError(f'field "messages": {message!r:.80} is not an object with role and content')
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role not in _ROLES:
        raise FormatError(f'field "messages": role {role!r:.80} is none of {", ".join(_ROLES)}; remove the row')
    if not isinstance(content, list):
        return Message(_ROLES[role], _text("messages", content), [])
    texts, clips = [], []
    for part in content:  # of OpenAI's form
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text("messages", part.get("text")))
        elif kind == "audio":
            texts.append(AUDIO_MARK)
            # Without a file of its own, it is the mark of a file in "audios".
            value = next((part[name] for name in ("audio", "audio_url", "path", "url") if part.get(name)), None)
            clips += [] if value is None else _clips("messages", value)
        else:
            raise FormatError(
                f'field "messages": a part of type {kind!r:.80} is neither text nor audio; remove the row'
            )
    return Message(_ROLES[role], "".join(texts), clips)


def _clips(name: str, value: Any) -> list[str]:
    """Files of clips: paths, or objects with a path."""
    files = []
    for clip in value if isinstance(value, list) else [value]:
        file = (
            next((clip[key] for key in ("path", "audio", "url") if clip.get(key)), None)
            if isinstance(clip, dict)
            else clip
        )
        if not isinstance(file, str) or not file.strip():
            raise FormatError(f'field "{name}": {clip!r:.80} is not the path of a file')
        if file.startswith(("http://", "https://", "data:")):
            raise FormatError(f'field "{name}": {file:.80} is not a local file; download it and write its path')
        files.append(file.removeprefix("file://"))
    return files


def _check_marks(messages: list[Message], clips: int) -> None:
    marks = {
        role: sum(message.text.count(AUDIO_MARK) for message in messages if message.role == role) for role in _ROLES
    }
    if marks["system"] or marks["assistant"]:
        raise FormatError(f'field "messages": {AUDIO_MARK} is not in a question; move it to one')
    if marks["user"] not in (0, clips):
        raise FormatError(
            f'field "messages": {marks["user"]} marks {AUDIO_MARK} for {clips} clips; write one for each, or none'
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f'field "{name}": {value!r:.80} is not a text; write a string')
    return value
