"""Who is a duplicate of whom: digests of what a row says, and of what it asks."""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from stages.data.formats.parser import Message, Row

_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


class Digests(NamedTuple):
    """Four unsigned 64-bit digests of a row; a tuple, since one is made for every row."""

    exact: int
    """Of its content, to the letter."""
    row: int
    """Of its content with every text stripped and lower-cased."""
    question: int
    """Of what the model is asked: see `asked`. Equal `row` digests have equal ones."""
    home: int
    """Of what decides the split: the value of `data.group_by`, or the question."""


def digests(row: Row, origin: Row) -> Digests:
    """Return the digests of `row`, which is `origin`, the row as it was read, or a piece of it.

    All pieces of one origin have its home.
    """
    if "text" in row.content:
        exact, plain = _digest(row.text), _text_digest(row.text)
        found = Digests(exact, plain, plain, plain)
    else:
        found = _conversation(row)
    if origin.home is not None:
        return found._replace(home=_digest(f"home {origin.home}"))
    if origin is row:
        return found
    return found._replace(home=_home(origin))


def asked(row: Row) -> list[Message]:
    """Return the turns that ask: those before the last assistant turn.

    Where these say nothing but a system prompt, nothing tells one row's question from another's,
    and the whole conversation takes its place.
    """
    turns = row.messages
    for index in range(len(turns) - 1, -1, -1):
        if turns[index]["role"] == "assistant":
            before = turns[:index]
            return before if any(map(_says, before)) else turns
    return turns


def question_text(row: Row) -> str:
    """Return the words of the question as one text, without the system prompt, which rows share."""
    if "text" in row.content:
        return row.text
    return "\n".join(turn["content"] for turn in asked(row) if turn["role"] != "system")


def _says(turn: Message) -> bool:
    # More than role and content: a call of a tool, say.
    return turn["role"] != "system" and (len(turn) > 2 or bool(turn["content"].strip()))


def _conversation(row: Row) -> Digests:
    turns = row.messages
    question = len(asked(row))
    plain = [_written(turn, plain=True) for turn in turns]
    tools, plain_tools = "", ""
    if row.content.get("tools"):
        tools, plain_tools = _JSON(row.content["tools"]), _JSON(_plain(row.content["tools"]))
    exact = _digest(tools + "".join([_written(turn) for turn in turns]))
    whole = _digest(plain_tools + "".join(plain))
    for number, turn in enumerate(turns[:question]):
        # What is trained of the question does not change what it asks.
        if "train" in turn:
            untrained = {key: value for key, value in turn.items() if key != "train"}
            plain[number] = _written(untrained, plain=True)
    home = _digest(plain_tools + "".join(plain[:question]))
    return Digests(exact, whole, home, home)


def _home(origin: Row) -> int:
    if "text" in origin.content:
        return _origin_digest(origin.text)
    return _conversation(origin).question


@lru_cache(maxsize=1)
def _origin_digest(text: str) -> int:
    # A long text has many pieces, one after the other: they must not cost its length each.
    return _text_digest(text)


def _text_digest(text: str) -> int:
    return _digest(text.strip().lower())


def _written(turn: Message, plain: bool = False) -> str:
    """Write a turn so that no two lists of turns are written alike."""
    if len(turn) == 2:
        text = turn["content"].strip().lower() if plain else turn["content"]
        return f"{turn['role']}:{len(text)}:{text}"
    return _JSON(_plain(turn) if plain else turn)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
