"""The turns of a conversation: what they may say, in the one form that templates are given.

A turn is `{"role": system | user | assistant | tool, "content": text}`, where there are some with
`name`, `tool_calls`, `tool_call_id`, `reasoning_content` and `"train": false`.
"""

from __future__ import annotations

from typing import Any

from stages.data.formats.tools import read_calls, read_function_call
from stages.data.formats.values import (
    check_text,
    decode_json,
    is_empty,
    is_usable,
    keys,
    kind,
    shown,
)
from stages.errors import InputError

Message = dict[str, Any]

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip
_PLAIN_ROLES = ("user", "assistant", "system")
_REASONING = ("reasoning_content", "reasoning", "thinking")
UNREADABLE = ("audio", "audios", "image", "images", "video", "videos")
"""Keys of what is no text, of turns and of rows."""


def check_turns(messages: object, where: str, name: str = "messages") -> list[Message]:
    """Return the turns in their plain form; raises InputError at `where`.

    `name` is what messages call the list. The rules that only training has are those of
    `check_trainable`.
    """
    turns = read_turns(messages, where, name)
    check_order(turns, where, name)
    return turns


def read_turns(messages: object, where: str, name: str) -> list[Message]:
    """Return each turn in its plain form, whatever their order."""
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else kind(messages)
        raise InputError(where, f'found {found} in "{name}", expected a list of turns')
    return [_turn(value, name, number, where) for number, value in enumerate(messages)]


def check_order(turns: list[Message], where: str, name: str) -> None:
    """Refuse turns where no chat template expects them; raises InputError at `where`."""
    before: Message = {"role": None}
    for number, turn in enumerate(turns):
        role = turn["role"]
        if role == "system" and number:
            found = f"found a system turn at {name}[{number}], expected it first only"
            raise InputError(where, found, "remove it, or join it with the first")
        if role == "assistant" and before["role"] == "assistant":
            found = f"found two assistant turns in a row at {name}[{number}]"
            raise InputError(where, f"{found}, expected one answer", "join them, or remove one")
        if role == "tool" and before["role"] != "tool" and "tool_calls" not in before:
            found = f"found a tool turn at {name}[{number}] that answers no call"
            expected = 'expected an assistant turn with "tool_calls" before it'
            raise InputError(where, f"{found}, {expected}", "add the call, or remove the turn")
        before = turn


def check_trainable(turns: list[Message], where: str) -> None:
    """Refuse turns that begin with an answer, or hold none; raises InputError at `where`."""
    if turns[0]["role"] == "assistant":
        expected = "expected a user or system turn to answer"
        raise InputError(where, f"found an assistant turn first, {expected}", "remove that turn")
    if not any(turn["role"] == "assistant" for turn in turns):
        mend = "add the answer to be learned, or remove the row"
        raise InputError(where, "found no assistant turn, expected at least one", mend)


def _turn(value: object, name: str, number: int, where: str) -> Message:
    if type(value) is dict and len(value) == 2:
        # Nearly every turn is like this, and needs no other look.
        role, content = value.get("role"), value.get("content")
        if role in _PLAIN_ROLES and isinstance(content, str) and is_usable(content):
            return {"role": role, "content": content}
    return _whole_turn(value, f"{name}[{number}]", where)


def _whole_turn(value: object, name: str, where: str) -> Message:
    if not isinstance(value, dict):
        expected = 'expected an object with "role" and "content"'
        raise InputError(where, f"found {kind(value)} as {name}, {expected}")
    turn: Message = {"role": _role(value, name, where)}
    for key in (*UNREADABLE, "refusal"):
        if not is_empty(value.get(key)):
            found = f'found "{key}" in {name}, which would be lost'
            raise InputError(where, found, "remove the key, or the row")
    calls = _calls(value, name, where)
    turn["content"] = _content(value, name, where, may_lack=bool(calls))
    for key in ("name", "tool_call_id"):
        if value.get(key) is not None:
            turn[key] = check_text(value[key], f'"{key}" of {name}', where)
    reasoning = _reasoning(value, name, where)
    if reasoning is not None:
        turn["reasoning_content"] = reasoning
    if calls:
        turn["tool_calls"] = calls
    for key in ("reasoning_content", "tool_calls"):
        if key in turn and turn["role"] != "assistant":
            found = f'found "{key}" in {name}, expected it in assistant turns only'
            raise InputError(where, found, "remove the key, or the row")
    if not _trained(value, turn["role"], name, where):
        turn["train"] = False
    return turn


def _role(value: dict[str, Any], name: str, where: str) -> str:
    if "role" not in value:
        mend = 'such turns stand in "conversations": rename the key, or use data.convert'
        found = f'found {keys(value)} in {name}, expected "role"'
        raise InputError(where, found, mend if "from" in value else "")
    role = value["role"]
    if not isinstance(role, str):
        raise InputError(where, f'found {kind(role)} as "role" of {name}, expected text')
    if role not in _ROLES:
        expected = f"expected one of {', '.join(_ROLES)}"
        raise InputError(where, f"found role '{shown(role)}' in {name}, {expected}")
    return _ROLES[role]


def _content(value: dict[str, Any], name: str, where: str, *, may_lack: bool) -> str:
    content = value.get("content")
    if content is None and may_lack:
        return ""
    if "content" not in value:
        raise InputError(where, f'found {keys(value)} in {name}, expected "content"')
    if not isinstance(content, list):
        return check_text(content, f'"content" of {name}', where)
    texts = []
    for number, part in enumerate(content):
        named = f'"content"[{number}] of {name}'
        if not isinstance(part, dict) or "type" not in part:
            found = f"found {keys(part) if isinstance(part, dict) else kind(part)} as {named}"
            raise InputError(where, f'{found}, expected {{"type": "text", "text": …}}')
        if part["type"] != "text":
            found = f"found a part of type '{shown(str(part['type']))}' as {named}"
            raise InputError(where, f"{found}, expected text parts only", "remove the row")
        texts.append(check_text(part.get("text"), f"the text of {named}", where))
    return "".join(texts)


def _calls(value: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """Return the turn's tool calls, or the one of the older `function_call`."""
    calls = decode_json(value.get("tool_calls"))
    found = [] if calls is None else read_calls(calls, name, where)
    if value.get("function_call") is None:
        return found
    if found:
        both = f'found both "tool_calls" and "function_call" in {name}, expected one of them'
        raise InputError(where, both, 'remove "function_call"')
    return [read_function_call(value["function_call"], f"{name}.function_call", where)]


def _reasoning(value: dict[str, Any], name: str, where: str) -> str | None:
    given = [key for key in _REASONING if value.get(key) is not None]
    texts = {check_text(value[key], f'"{key}" of {name}', where) for key in given}
    if len(texts) > 1:
        found = f"found different texts as {' and '.join(given)} of {name}, expected one"
        raise InputError(where, found, "remove one of them")
    return texts.pop() if texts else None


def _trained(value: dict[str, Any], role: str, name: str, where: str) -> bool:
    """Tell whether the turn is to be trained, by its `train` or OpenAI's `weight`."""
    given = {key: value[key] for key in ("train", "weight") if value.get(key) is not None}
    for key, wish in given.items():
        if role != "assistant":
            found = f'found "{key}" in {name}, expected it in assistant turns only'
            raise InputError(where, found, "remove the key")
        fitting = isinstance(wish, bool) if key == "train" else type(wish) in (int, float)
        if not fitting or wish not in (0, 1):
            expected = "true or false" if key == "train" else "0 or 1"
            what = wish if type(wish) in (int, float) else kind(wish)
            raise InputError(where, f'found {what} as "{key}" of {name}, expected {expected}')
    wishes = {bool(wish) for wish in given.values()}
    if len(wishes) > 1:
        raise InputError(where, f'found "train" and "weight" of {name} that disagree')
    return wishes != {False}
