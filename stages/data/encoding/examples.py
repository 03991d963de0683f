"""What becomes of one row: the rows to train on, and what was done to it on the way."""

from __future__ import annotations

from dataclasses import dataclass

from stages.data.formats.parser import Row
from stages.data.rows import Supervised, Tokens
from stages.errors import InputError

NOTES = {
    "dropped_overlong": "dropped as overlong",
    "truncated": "cut at the beginning",
    "split": "continued in further rows",
    "unrolled": "unrolled into a row for each answer",
    "system_merged": "system prompt joined with the first turn",
    "empty_answer": "empty answer",
    "supervises_nothing": "no supervised token",
}
"""What can be noted of a row, in words; one that supervises nothing is left out."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row to train on."""

    row: Row
    """What exactly it is made of; source, where and home are those of the row as it was read."""
    tokens: Tokens
    supervised: Supervised


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of one row."""

    examples: list[Example]
    notes: tuple[str, ...]
    """Some of NOTES."""


def too_long(row: Row, length: int, longest: int) -> InputError:
    """Return the error of a row that has more than `longest` tokens."""
    found = f"its row has {length} tokens, more than data.max_seq_length={longest}"
    mend = "shorten it, raise data.max_seq_length, or set data.overlong=drop"
    return InputError(row.where, found, mend)
