"""Which rows are kept, where, and how often; and what that says about the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.selection.ledger import Columns
from stages.data.selection.splits import TEST, TRAIN, VALID, assign, positions
from stages.data_settings import Data
from stages.errors import InputError
from stages.inputs import SPLITS

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCounts:
    """Counts of one split: what was found before any row was removed, and what was done then."""

    rows: int
    exact_duplicates: int
    """Rows whose content occurred before in the split, to the letter."""
    duplicates: int
    """The same with every text stripped and lower-cased."""
    repeated_questions: int
    """Rows that ask what an earlier row of the split asks: `duplicates` + `other_answers`."""
    other_answers: int
    """Rows that give such a question an answer that it did not have before."""
    asked_in_train: int = 0
    """Rows of valid or test whose question some training row asks."""
    exact_in_train: int = 0
    """Rows of valid or test whose content some training row has, to the letter."""
    removed_leaks: int = 0
    """Training rows removed as they ask what a valid or test row asks."""
    removed_duplicates: int = 0
    left_out: int = 0
    """Rows that a weight below one left out."""
    repeated: int = 0
    """Copies that a weight above one added."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of every split."""

    indices: dict[str, Indices]
    """Of each split, its rows by their index in the ledger, rising; copies stand side by side."""
    assigned: NDArray[np.int8]
    """The split of every row of the ledger, removed ones included: 0 train, 1 valid, 2 test."""
    counts: dict[str, SplitCounts]


def select(columns: Columns, data: Data, seed: int) -> Selection:
    """Assign every row to a split, then remove leaks, then duplicates, then apply the weights.

    Each step looks at a row's digests only, so that appended rows change nothing for earlier ones,
    but that a training row goes when a held-out row asks the same. Raises InputError where no row
    is left to train on.
    """
    assigned = assign(
        columns.home, columns.split, columns.given, seed,
        valid_fraction=data.valid_fraction, test_fraction=data.test_fraction,
    )  # fmt: skip
    rows = [np.flatnonzero(assigned == split) for split in (TRAIN, VALID, TEST)]
    removed: list[dict[str, int]] = [{}, {}, {}]
    kept = list(rows)
    if data.leakage == "drop":
        held_out = np.concatenate([columns.question[kept[VALID]], columns.question[kept[TEST]]])
        leaks = _among(columns.question[kept[TRAIN]], held_out)
        removed[TRAIN]["removed_leaks"] = int(leaks.sum())
        kept[TRAIN] = kept[TRAIN][~leaks]
    if data.duplicates == "drop":
        for split, before in enumerate(kept):
            first = np.unique(columns.row[before], return_index=True)[1]
            kept[split] = before[np.sort(first)]
            removed[split]["removed_duplicates"] = len(before) - len(first)
    if data.weights is not None:
        times = _times(columns, kept[TRAIN], data.weights, seed)
        removed[TRAIN]["left_out"] = int((times == 0).sum())
        removed[TRAIN]["repeated"] = int(np.maximum(times - 1, 0).sum())
        kept[TRAIN] = np.repeat(kept[TRAIN], times)
    if not len(kept[TRAIN]):
        raise _nothing_left(len(rows[TRAIN]), removed[TRAIN])
    counts = [_found(columns, rows, split) | removed[split] for split in (TRAIN, VALID, TEST)]
    return Selection(
        indices=dict(zip(SPLITS, kept, strict=True)),
        assigned=assigned,
        counts={name: SplitCounts(**found) for name, found in zip(SPLITS, counts, strict=True)},
    )


def _found(columns: Columns, rows: list[Indices], split: int) -> dict[str, int]:
    exact, question = columns.exact[rows[split]], columns.question[rows[split]]
    contents, asked = _distinct(columns.row[rows[split]]), _distinct(question)
    found = {
        "rows": len(exact),
        "exact_duplicates": len(exact) - _distinct(exact),
        "duplicates": len(exact) - contents,
        "repeated_questions": len(exact) - asked,
        "other_answers": contents - asked,
    }
    if split != TRAIN:
        for name, mine, theirs in (
            ("asked_in_train", question, columns.question),
            ("exact_in_train", exact, columns.exact),
        ):
            found[name] = int(_among(mine, theirs[rows[TRAIN]]).sum())
    return found


# Sorting is several times faster than numpy's `unique` and `isin` are on millions of digests.
def _distinct(digests: NDArray[np.uint64]) -> int:
    rising = np.sort(digests)
    return int((rising[1:] != rising[:-1]).sum()) + bool(len(rising))


def _among(digests: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    rising = np.sort(others)
    at = np.searchsorted(rising, digests)
    there = at < len(rising)
    there[there] = rising[at[there]] == digests[there]
    return there


def _times(
    columns: Columns, rows: Indices, weights: tuple[float, ...], seed: int
) -> NDArray[np.int64]:
    """Return how often each row is taken: the whole part of its source's weight, and by chance
    (of its words, so that copies share it) once more for the rest."""
    times = np.zeros(len(rows), np.int64)
    for source, weight in enumerate(weights):
        of_source = columns.source[rows] == source
        chance = positions(columns.row[rows[of_source]], seed, "weight", source)
        times[of_source] = int(weight) + (chance < weight - int(weight))
    return times


def _nothing_left(rows: int, removed: dict[str, int]) -> InputError:
    if not rows:
        return InputError("data.path", "found no row to train on", "add some")
    if removed.get("removed_leaks") == rows:
        found = f"every training row ({rows:,}) asks what a validation or test row asks"
        return InputError("data.leakage", found, "set data.leakage=keep, or hold other rows out")
    return InputError("data.weights", f"they leave out all {rows:,} training rows", "raise them")
