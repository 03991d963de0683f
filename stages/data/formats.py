"""What a row must look like, and the plain form in which it travels on.

chat: `{"messages": [{"role": …, "content": …}, …]}`, text: `{"text": …}`. Other keys of a row are
left behind, except those that say how to train it: a row that has one is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from stages.errors import InputError

Format = Literal["chat", "text"]
Message = dict[str, str]

ROLES = ("system", "user", "assistant")
_KEYS: dict[str, str] = {"chat": "messages", "text": "text"}
# Dropping one of these in silence would train something else than the file says.
_REFUSED = ("tools", "tool_calls", "function_call", "reasoning_content", "train", "weight")


@dataclass(frozen=True, slots=True)
class Row:
    """One row in its plain form."""

    content: dict[str, Any]
    """`{"messages": [{"role", "content"}, …]}` or `{"text": …}`, nothing else."""
    source: str
    """File name and line, `train.jsonl:12`: the same wherever the folder lies."""
    where: str
    """The same with the path as the person wrote it, for messages."""

    @property
    def messages(self) -> list[Message]:
        """Return the turns of a chat row."""
        messages: list[Message] = self.content["messages"]
        return messages

    @property
    def text(self) -> str:
        """Return the text of a text row."""
        text: str = self.content["text"]
        return text


def parse(value: object, wanted: Format, source: str, where: str) -> Row:
    """Check one decoded row and return its plain form; raises InputError at `where`."""
    expected = f'expected an object with "{_KEYS[wanted]}"'
    if not isinstance(value, dict):
        raise InputError(where, f"found {_kind(value)}, {expected}", "put one object on each line")
    key = _KEYS[wanted]
    if key not in value:
        raise InputError(where, f"found {_keys(value)}, {expected}", _other_format(value, wanted))
    _refuse_meaning(value, where)
    if wanted == "chat":
        return Row({"messages": _messages(value[key], where)}, source, where)
    text = _text(value[key], '"text"', where)
    if not text.strip():
        raise InputError(where, "found an empty text, expected some", "remove the row")
    return Row({"text": text}, source, where)


def identity(row: Row) -> str:
    """Return what makes two rows duplicates: their words, whatever their case and spacing."""
    if "text" in row.content:
        return _words(row.text)
    turns = [[message["role"], _words(message["content"])] for message in row.messages]
    return json.dumps(turns, ensure_ascii=False)


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _kind(value)
        raise InputError(where, f'found {found} in "messages", expected a list of turns')
    messages = [_message(turn, f"messages[{n}]", where) for n, turn in enumerate(value)]
    roles = [message["role"] for message in messages]
    if roles[0] == "assistant":
        expected = "expected a user or system turn to answer"
        raise InputError(where, f"found an assistant turn first, {expected}", "remove that turn")
    if "assistant" not in roles:
        mend = "add the answer to be learned, or remove the row"
        raise InputError(where, "found no assistant turn, expected at least one", mend)
    return messages


def _message(value: object, name: str, where: str) -> Message:
    if not isinstance(value, dict):
        expected = 'expected an object with "role" and "content"'
        raise InputError(where, f"found {_kind(value)} as {name}, {expected}")
    for key in ("role", "content"):
        if key not in value:
            raise InputError(where, f'found {_keys(value)} in {name}, expected "{key}"')
    _refuse_meaning(value, where)
    if value["role"] not in ROLES:
        expected = f"expected one of {', '.join(ROLES)}"
        raise InputError(where, f"found role {value['role']!r} in {name}, {expected}")
    content = _text(value["content"], f'"content" of {name}', where)
    return {"role": value["role"], "content": content}


def _refuse_meaning(value: dict[str, Any], where: str) -> None:
    for key in _REFUSED:
        if value.get(key) is not None:
            found = f'found "{key}", which would be lost'
            raise InputError(where, found, "remove the key, or the row")


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(where, f"found {_kind(value)} as {name}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"found half of a surrogate pair in {name}, at character {error.start + 1}"
        raise InputError(where, found, "remove that character") from error
    return value


def _other_format(value: dict[str, Any], wanted: Format) -> str:
    other = "text" if wanted == "chat" else "chat"
    return f"these rows look like {other}: use data={other}" if _KEYS[other] in value else ""


def _keys(value: dict[str, Any]) -> str:
    names = ", ".join(f'"{key}"' for key in list(value)[:5])
    return f"the keys {names}" if names else "an empty object"


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object", type(None): "null"}  # fmt: skip
    return names[type(value)]
