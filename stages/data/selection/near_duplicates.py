"""Rows that ask nearly the same, found by MinHash and banding (Leskovec et al., 2020, chapter 3).

Two questions are near-duplicates if they differ once stripped and lower-cased, and if `THRESHOLD`
of the word groups that either has are in both: see `stages.data.selection.minhash`. Of pairs just
so similar 95 in 100 are found, of those with an index of 0.9 all but 1 in 8,000.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.selection.minhash import SIGNATURE, Hashes, Sketches, sketch
from stages.data.selection.splits import TEST, TRAIN, VALID, positions
from stages.inputs import SPLITS

SEARCHED = 100_000
"""Most rows that are searched: it bounds time and memory."""
THRESHOLD = 0.8

_BAND = 8
_NEIGHBOURS = 8  # compared with each row in each band, however many share it
_EXAMPLES = 5
_PAIRS = 4096  # compared at once
# Five standard deviations of the estimate below, so that the index itself decides.
_ESTIMATE = THRESHOLD - 5 * (THRESHOLD * (1 - THRESHOLD) / SIGNATURE) ** 0.5

Texts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What the search found."""

    searched: int
    """Rows searched, of `rows`."""
    rows: int
    within: dict[str, int]
    """Of each split, the rows that have a near-duplicate in it."""
    in_train: dict[str, int]
    """Of valid and test, the rows that have a near-duplicate in train."""
    examples: tuple[tuple[int, int, float], ...]
    """Up to five pairs: two rows by their index, and the Jaccard index of their questions."""


def searched(questions: Hashes, seed: int, limit: int = SEARCHED) -> NDArray[np.int64]:
    """Return the rows to search, rising: all, or `limit` of them by seeded positions."""
    if len(questions) <= limit:
        return np.arange(len(questions))
    where = positions(questions, seed, "near-duplicates")
    return np.sort(np.argsort(where, kind="stable")[:limit])


def near_duplicates(texts: Iterable[tuple[int, int, str]], rows: int) -> NearDuplicates:
    """Search texts given as (row, split 0 to 2, question); `rows` is how many there are in all.

    Rows that say the same once stripped and lower-cased count as often as they occur. Takes 2 kB a
    text and 4 kB a long one.
    """
    sketches = sketch(texts)
    within, in_train = _Partners(sketches), _Partners(sketches)
    for start in range(0, SIGNATURE, _BAND):
        bands = sketches.signatures[:, start : start + _BAND]
        keys = _keys(bands)
        _search_within(within, keys)
        _search_train(in_train, keys)
    return NearDuplicates(
        searched=sketches.read,
        rows=rows,
        within={name: within.rows_of(split) for split, name in enumerate(SPLITS)},
        in_train={SPLITS[split]: in_train.rows_of(split) for split in (VALID, TEST)},
        examples=_examples(in_train, within),
    )


class _Partners:
    """The near-duplicate found of each text, if any."""

    def __init__(self, sketches: Sketches) -> None:
        self.sketches = sketches
        self.found = np.full(len(sketches.rows), -1)
        self.jaccard = np.zeros(len(sketches.rows))

    def compare(self, one: Texts, other: Texts) -> None:
        """Note the similar ones of the pairs as partners of `one`, those not yet found."""
        sketches = self.sketches
        wanted = (self.found[one] < 0) & (sketches.digests[one] != sketches.digests[other])
        one, other = one[wanted], other[wanted]
        for start in range(0, len(one), _PAIRS):
            a, b = one[start : start + _PAIRS], other[start : start + _PAIRS]
            likely = (sketches.signatures[a] == sketches.signatures[b]).mean(1) >= _ESTIMATE
            a, b = a[likely], b[likely]
            index = sketches.jaccard(a, b)
            near = index >= THRESHOLD
            self.found[a[near]], self.jaccard[a[near]] = b[near], index[near]

    def rows_of(self, split: int) -> int:
        """Return how many rows of `split` have one."""
        chosen = (self.found >= 0) & (self.sketches.split == split)
        return int(self.sketches.copies[chosen].sum())


def _keys(bands: NDArray[np.uint32]) -> Hashes:
    """Return one hash of every row of (texts, band)."""
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(bands.shape[1], dtype=np.uint64)
    keys: Hashes = (bands * powers).sum(1, dtype=np.uint64)
    return keys


def _search_within(partners: _Partners, keys: Hashes) -> None:
    """Compare texts of one key and split with their next neighbours, both ways."""
    split = partners.sketches.split
    order = np.lexsort((keys, split))
    for step in range(1, _NEIGHBOURS + 1):
        one, other = order[:-step], order[step:]
        same = (keys[one] == keys[other]) & (split[one] == split[other])
        partners.compare(one[same], other[same])
        partners.compare(other[same], one[same])


def _search_train(partners: _Partners, keys: Hashes) -> None:
    """Compare held-out texts with the first training texts of their key."""
    split = partners.sketches.split
    train, held_out = np.flatnonzero(split == TRAIN), np.flatnonzero(split != TRAIN)
    train = train[np.argsort(keys[train], kind="stable")]
    start = np.searchsorted(keys[train], keys[held_out])
    end = np.searchsorted(keys[train], keys[held_out], "right")
    for step in range(_NEIGHBOURS):
        there = start + step < end
        partners.compare(held_out[there], train[(start + step)[there]])


def _examples(*searches: _Partners) -> tuple[tuple[int, int, float], ...]:
    """Return pairs of the first rows, no row twice; those across splits come first."""
    shown: set[int] = set()
    examples: list[tuple[int, int, float]] = []
    for partners in searches:
        for text in np.flatnonzero(partners.found >= 0).tolist():
            pair = {text, int(partners.found[text])}
            if len(examples) < _EXAMPLES and not pair & shown:
                shown |= pair
                one, other = sorted(int(partners.sketches.rows[member]) for member in pair)
                examples.append((one, other, float(partners.jaccard[text])))
    return tuple(examples)
