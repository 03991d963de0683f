"""Turns as ShareGPT and its followers write them: `{"from": "human", "value": text}`.

Spellings of the roles: Vicuna's cleaned ShareGPT, OpenOrca, and LLaMA-Factory's `data/README.md`.
"""

from __future__ import annotations

from typing import Any

from stages.data.formats.messages import Message, read_turns
from stages.data.formats.values import decode_json, kind, shown
from stages.errors import InputError

_SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "function_call": "assistant",
    "tool_call": "assistant",
    "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")


def read_conversation(value: object, where: str, name: str = "conversations") -> list[Message]:
    """Return the turns in their plain form, also those with `role` and `content`.

    The value of a function call is JSON, `{"name", "arguments"}` or a list of these. Raises
    InputError at `where`.
    """
    if isinstance(value, list):
        value = [_renamed(turn, f"{name}[{n}]", where) for n, turn in enumerate(value)]
    return read_turns(value, where, name)


def _renamed(turn: object, name: str, where: str) -> object:
    if not isinstance(turn, dict) or "from" not in turn or turn.get("role") is not None:
        return turn
    speaker = turn["from"]
    if not isinstance(speaker, str):
        raise InputError(where, f'found {kind(speaker)} as "from" of {name}, expected text')
    if speaker not in _SPEAKERS:
        expected = f"expected one of {', '.join(_SPEAKERS)}"
        raise InputError(where, f"found '{shown(speaker)}' as \"from\" of {name}, {expected}",
                         "use data.convert to rename it")  # fmt: skip
    if "value" not in turn:
        raise InputError(where, f'found no "value" in {name}, expected the text of the turn')
    rest = {key: inner for key, inner in turn.items() if key not in ("from", "value", "role")}
    if speaker in _CALLS:
        rest |= _called(turn["value"], name, where)
    else:
        rest["content"] = turn["value"]
    return {"role": _SPEAKERS[speaker], **rest}


def _called(value: object, name: str, where: str) -> dict[str, Any]:
    calls = decode_json(value)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) for call in calls):
        found = f'found {kind(value)} as "value" of {name}'
        expected = 'expected a function call as JSON, {"name": …, "arguments": {…}}'
        raise InputError(where, f"{found}, {expected}")
    return {"content": None, "tool_calls": [{"function": call} for call in calls]}
