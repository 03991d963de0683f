"""Which format a record has: its keys say it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from stages.data.formats.values import keys
from stages.errors import InputError

FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "conversations": (("conversations",),),
    "prompt_completion": (("prompt", "completion"), ("prompt", "response")),
    "alpaca": (("instruction", "output"),),
    "question_answer": (("question", "answer"),),
    "text": (("text",),),
}
"""The formats in the order in which they are looked for, and the keys that make a record one."""

_ALL = [(name, spelling) for name, spellings in FORMATS.items() for spelling in spellings]
_LIKENESS = 0.8


def in_known_case(record: dict[str, Any], wanted: str) -> dict[str, Any]:
    """Return the record, its keys in lower case where only that makes it one of the formats."""
    if _find(record, wanted) is not None:
        return record
    lowered = {str(key).strip().lower(): value for key, value in record.items()}
    known = len(lowered) == len(record) and _find(lowered, wanted) is not None
    return lowered if known else record


def find_format(record: dict[str, Any], wanted: str, where: str) -> str:
    """Return the format of a record, which must be `wanted` unless that is auto.

    A key that is null counts as absent where another format fits, as tables that were joined have
    such keys. Raises InputError at `where`.
    """
    found = _find(record, wanted) or _find(dict.fromkeys(record, True), wanted)
    if found is None:
        expected, mend = _advice(record, wanted)
        raise InputError(where, f"found {keys(record)}, expected {expected}", mend)
    return found


def _find(record: dict[str, Any], wanted: str) -> str | None:
    get = record.get
    for name, spelling in _ALL:
        if wanted not in ("auto", name) or get(spelling[0]) is None:
            continue
        if len(spelling) == 1 or get(spelling[1]) is not None:
            return name
    return None


def _advice(record: dict[str, Any], wanted: str) -> tuple[str, str]:
    """Return what was expected, and what to do."""
    near = _misspelt(record, wanted)
    other = None if wanted == "auto" else _find(record, "auto")
    if wanted == "auto":
        known = ", ".join(_spelt(name) for name in FORMATS)
        expected, mend = f"one of {known}", "set data.columns or data.convert for any other shape"
    else:
        expected, mend = _spelt(wanted), "use data.format=auto with data.columns, or data.convert"
    if other is not None:
        return expected, f"these rows look like {other}: use data.format={other}"
    return expected, f'did you mean "{near}"? Else {mend}' if near else mend


def _misspelt(record: dict[str, Any], wanted: str) -> str | None:
    """Return the one key that makes the record whole, where it has one much like it."""
    for name, spelling in _ALL:
        missing = [key for key in spelling if key not in record]
        if wanted in ("auto", name) and len(missing) == 1:
            others = [str(key).lower() for key in record if key not in spelling]
            if get_close_matches(missing[0], others, 1, _LIKENESS):
                return missing[0]
    return None


def _spelt(name: str) -> str:
    return " or ".join(" + ".join(f'"{key}"' for key in spelling) for spelling in FORMATS[name])
