"""Single values of a record: what they may hold, and how messages call them."""

from __future__ import annotations

import json
import math
from typing import Any

from stages.errors import InputError

_KINDS: dict[type, str] = {
    bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip
_MAX_DEPTH = 100
_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 60


def kind(value: object) -> str:
    """Return what messages call a value: its JSON type, or its Python type where it has none."""
    return _KINDS.get(type(value)) or f"a value of type {type(value).__name__}"


def shown(text: str) -> str:
    """Return text of a record as it can stand in a message: short, one line, no lone surrogates."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return " ".join(short.encode(errors="backslashreplace").decode().split())


def keys(record: dict[Any, Any]) -> str:
    """Return the keys of a record, the first of many, for a message."""
    names = [f'"{shown(str(key))}"' for key in list(record)[:_SHOWN_KEYS]]
    more = ", …" if len(record) > _SHOWN_KEYS else ""
    return f"the keys {', '.join(names)}{more}" if names else "an empty object"


def check_text(value: object, name: str, where: str, mend: str = "") -> str:
    """Return a text that every tokenizer takes for the same; raises InputError at `where`."""
    if not isinstance(value, str):
        raise InputError(where, f"found {kind(value)} as {name}, expected text", mend)
    if not is_usable(value):
        index = next(n for n, letter in enumerate(value) if _is_refused(letter))
        what = "half of a surrogate pair" if ord(value[index]) else "the character NUL (U+0000)"
        found = f"found {what} in {name}, at character {index + 1}"
        raise InputError(where, found, "remove that character")
    return value


def is_usable(text: str) -> bool:
    """Tell whether every tokenizer takes the text for the same: no NUL and no lone surrogate."""
    if "\0" in text:
        return False
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def check_json(value: object, name: str, where: str) -> None:
    """Refuse what JSON cannot hold, and texts that `check_text` refuses, anywhere in a value."""
    rest = [(value, 1)]
    while rest:
        item, depth = rest.pop()
        if depth > _MAX_DEPTH:
            found = f"found {name} nested deeper than {_MAX_DEPTH} levels"
            raise InputError(where, found, "remove the row")
        if isinstance(item, str):
            check_text(item, f"text in {name}", where)
        elif isinstance(item, dict):
            for key, inner in item.items():
                check_text(key, f"a key in {name}", where)
                rest.append((inner, depth + 1))
        elif isinstance(item, list):
            rest += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float) and not math.isfinite(item):
            raise InputError(where, f"found {item} in {name}, expected a number of JSON")
        elif type(item) not in _KINDS:
            raise InputError(where, f"found {kind(item)} in {name}, expected JSON")


def is_empty(value: object) -> bool:
    """Tell whether a value says nothing: null, false, or an empty text, list or object."""
    return value is None or (isinstance(value, bool | str | list | dict) and not value)


def decode_json(value: object) -> object:
    """Return what a text of JSON holds, as tables have lists; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        decoded: object = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return decoded


def _is_refused(letter: str) -> bool:
    return letter == "\0" or "\ud800" <= letter <= "\udfff"
