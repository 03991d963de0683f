"""Rows of any shape, by the mapping `data.columns`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from stages.data.formats.values import check_text, keys
from stages.errors import InputError

_OPTIONAL = ("system", "tools")
_LISTS = ("messages", "tools")


def open_columns(columns: Mapping[str, str]) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Return the function that takes the cells of a record (record, where) by their roles.

    Numbers and booleans become their JSON text. It raises InputError at `where` for a column that
    is missing, or null: only `system` and `tools` may be.
    """
    return lambda record, where: {
        role: cell
        for role, column in columns.items()
        if (cell := _cell(record, role, column, where)) is not None
    }


def _cell(record: dict[str, Any], role: str, column: str, where: str) -> object:
    if column not in record:
        found = f'found {keys(record)}, expected "{column}"'
        raise InputError(where, found, f"mend data.columns.{role}")
    cell = record[column]
    if cell is None and role not in _OPTIONAL:
        found = f'found null as "{column}", expected what data.columns.{role} says'
        raise InputError(where, found, "fill it in, or remove the row")
    if cell is None or role in _LISTS:
        return cell
    if isinstance(cell, float) and not math.isfinite(cell):
        raise InputError(where, f'found {cell} as "{column}", expected text or a number')
    text = json.dumps(cell) if isinstance(cell, bool | int | float) else cell
    return check_text(text, f'"{column}"', where, "name another column, or use data.convert")
