"""JSON as its standard has it, and where in a text it is broken."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import NoReturn

from stages.errors import InputError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)|(-?\d[\d.eE+-]*)', re.DOTALL)
_NAMED = {"\0": "a NUL character", "\ufeff": "a byte order mark inside the file"}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(number)
    return value


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
"""Raises ValueError for NaN and Infinity, which no other reader of JSON takes."""


def explain(text: str, start: int, error: ValueError | RecursionError) -> tuple[int, str]:
    """Return where in the text a value that begins at `start` is broken, and how."""
    if isinstance(error, json.JSONDecodeError):
        at = error.pos
        return at, f"invalid JSON ({_NAMED.get(text[at : at + 1], error.msg.removesuffix(' at'))})"
    if isinstance(error, RecursionError):
        return start, "invalid JSON (nested too deep)"
    for token in _TOKEN.finditer(text, start):
        constant, number = token.groups()
        if constant:
            return token.start(), f"invalid JSON ({constant} is no number in JSON)"
        if number and _is_beyond(number):
            shown = number if len(number) < 20 else f"a number of {len(number)} characters"
            return token.start(), f"invalid JSON ({shown} is too large a number)"
    return start, f"invalid JSON ({error})"


def _is_beyond(number: str) -> bool:
    digits = number.lstrip("-")
    limit = sys.get_int_max_str_digits()
    if digits.isdigit():
        return 0 < limit < len(digits)
    return math.isinf(float(number))


def decode_value(text: str, where: str) -> object:
    """Return the one value that a line of text holds; raises InputError at `where:column`."""
    try:
        value: object = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        at, found = explain(text, 0, error)
        mend = "put one whole JSON object on each line"
        raise InputError(f"{where}:{at + 1}", found, mend) from error
    return value
