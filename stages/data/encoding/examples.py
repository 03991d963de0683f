"""What becomes of one row: the rows to train on, and what was done to it on the way."""

from __future__ import annotations

from dataclasses import dataclass

from stages.data.formats.parser import Row
from stages.data.rows import Supervised, Tokens
from stages.errors import InputError

NOTES = {
    "dropped_overlong": "left out, as it is longer than data.max_seq_length",
    "truncated": "shortened at its beginning to data.max_seq_length",
    "split": "a text continued in further rows",
    "unrolled": "one row for each answer, as the chat template rewrites or drops earlier turns",
    "system_merged": "its system turn became the beginning of the first user turn",
    "empty_answer": "an answer says nothing, and is not trained",
    "supervises_nothing": "left out, as none of its answers is to be trained",
}
"""What can have been done to a row, and what that means."""


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
