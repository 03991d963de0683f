"""Seeded splits: where a row goes depends on the seed and its own home only.

A row therefore stays where it is when others are appended, and rows of one home stay together.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

TRAIN, VALID, TEST = range(3)
"""How arrays name the splits; the order is that of `stages.inputs.SPLITS`."""


def assign(
    home: NDArray[np.uint64],
    split: NDArray[np.int8],
    given: Collection[int],
    seed: int,
    *,
    valid_fraction: float,
    test_fraction: float,
) -> NDArray[np.int8]:
    """Return the split of every row, int8 (rows,): rows of `train` supply the splits not `given`.

    The position of a row's home, uniform in [0, 1), decides: below `test_fraction` it is a test
    row, from 1 - `valid_fraction` on a validation row. Where that leaves no training row, or no
    validation row although some are wanted and two homes differ, the nearest home takes the place;
    this alone may change when rows are appended.
    """
    valid_fraction = 0.0 if VALID in given else valid_fraction
    test_fraction = 0.0 if TEST in given else test_fraction
    divided = np.flatnonzero(split == TRAIN)
    assigned = split.copy()
    if not len(divided) or not (valid_fraction or test_fraction):
        return assigned
    homes = home[divided]
    where = positions(homes, seed, "split")
    parts = np.full(len(divided), TRAIN, np.int8)
    parts[where >= 1 - valid_fraction] = VALID
    parts[where < test_fraction] = TEST
    if not (parts == TRAIN).any():
        middle = (test_fraction + 1 - valid_fraction) / 2
        parts[homes == homes[np.argmin(np.abs(where - middle))]] = TRAIN
    if valid_fraction and not (parts == VALID).any():
        _find_valid(parts, homes, where)
    assigned[divided] = parts
    return assigned


def positions(digests: NDArray[np.uint64], seed: int, *purpose: int | str) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each digest, uniform, that follows from the arguments alone.

    The output function of SplitMix64 (Steele, Lea and Flood, 2014) mixes the digest and a key.
    """
    key = blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    bits = digests ^ np.uint64(int.from_bytes(key, "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    # 53 bits are what a float holds exactly, so that it stays below 1.
    return (bits >> np.uint64(11)) / np.float64(2**53)


def _find_valid(
    parts: NDArray[np.int8], homes: NDArray[np.uint64], where: NDArray[np.float64]
) -> None:
    """Move the home of the highest position to `valid`, unless it is all there is to train on."""
    trained = homes[parts == TRAIN]
    only = (trained == trained[0]).all()
    free = np.flatnonzero((parts != TRAIN) | (not only))
    if len(free):
        parts[homes == homes[free[np.argmax(where[free])]]] = VALID
