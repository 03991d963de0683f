"""Seeded splits: where a row goes depends on the seed and its own words only.

A row therefore stays where it is when others are appended, and duplicates stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from stages.data.formats import Row, identity


def divide(
    rows: Sequence[Row], seed: int, *, valid_fraction: float, test_fraction: float
) -> dict[str, list[Row]]:
    """Return `train`, `valid` and `test`: each row once, in the order given.

    The position of a row, uniform in [0, 1), decides: below `test_fraction` it is a test row, from
    1 - `valid_fraction` on a validation row. Where that leaves no training row, or no validation
    row although some are wanted and two rows differ, the nearest takes the place; this alone may
    change when rows are appended.
    """
    identities = [identity(row) for row in rows]
    positions = {words: _position(seed, words) for words in identities}
    homes = {words: _home(at, valid_fraction, test_fraction) for words, at in positions.items()}
    _leave_none_empty(homes, positions, valid_fraction, test_fraction)
    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for row, words in zip(rows, identities, strict=True):
        parts[homes[words]].append(row)
    return parts


def _position(seed: int, words: str) -> float:
    digest = hashlib.sha256(f"{seed} split {words}".encode()).digest()
    # 53 bits are what a float holds exactly, so that it stays below 1.
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def _home(position: float, valid_fraction: float, test_fraction: float) -> str:
    if position < test_fraction:
        return "test"
    return "valid" if position >= 1 - valid_fraction else "train"


def _leave_none_empty(
    homes: dict[str, str],
    positions: dict[str, float],
    valid_fraction: float,
    test_fraction: float,
) -> None:
    if homes and "train" not in homes.values():
        middle = (test_fraction + 1 - valid_fraction) / 2
        homes[min(homes, key=lambda words: abs(positions[words] - middle))] = "train"
    if valid_fraction > 0 and len(homes) > 1 and "valid" not in homes.values():
        only = list(homes.values()).count("train") == 1
        free = [words for words in homes if not (only and homes[words] == "train")]
        homes[max(free, key=lambda words: positions[words])] = "valid"
