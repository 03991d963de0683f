"""What stays in memory of every row while all are read: 43 bytes each."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGESTS = ("exact", "row", "question", "home")


@dataclass(frozen=True, slots=True)
class Columns:
    """The ledger of all rows, in the order read; every array is (rows,)."""

    split: NDArray[np.int8]
    """The split of the row's file: 0 train, 1 valid, 2 test."""
    source: NDArray[np.int16]
    """Index in the list `data.path`."""
    lengths: NDArray[np.int32]
    """Tokens."""
    supervised: NDArray[np.int32]
    """Supervised tokens."""
    exact: NDArray[np.uint64]
    row: NDArray[np.uint64]
    question: NDArray[np.uint64]
    home: NDArray[np.uint64]
    """These four: see `stages.data.selection.identity.Digests`."""
    given: frozenset[int]
    """Splits that some file holds, even if none of its rows could be used."""


@dataclass(slots=True)
class Ledger:
    """Growing columns."""

    _columns: dict[str, array[int]] = field(
        default_factory=lambda: {
            "split": array("b"), "source": array("h"), "lengths": array("i"),
            "supervised": array("i"), **{name: array("Q") for name in _DIGESTS},
        }
    )  # fmt: skip
    _given: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._columns["split"])

    def append(
        self,
        *,
        split: int,
        source: int,
        lengths: NDArray[np.int32],
        supervised: NDArray[np.int32],
        digests: NDArray[np.uint64],
    ) -> None:
        """Add the next rows, all of one split and source; `digests` is (rows, 4)."""
        rows = len(lengths)
        if supervised.shape != (rows,) or digests.shape != (rows, len(_DIGESTS)):
            found = f"{supervised.shape} and {digests.shape}"
            raise ValueError(f"found columns {found}, expected {rows} rows")
        self._given.add(split)
        self._add("split", np.full(rows, split, np.int8))
        self._add("source", np.full(rows, source, np.int16))
        self._add("lengths", lengths)
        self._add("supervised", supervised)
        for name, column in zip(_DIGESTS, digests.T, strict=True):
            self._add(name, column)

    def finish(self) -> Columns:
        """Return the columns, read-only and without a copy; no row can be added any more."""
        arrays = {name: np.frombuffer(column, _type(column)) for name, column in
                  self._columns.items()}  # fmt: skip
        for values in arrays.values():
            values.flags.writeable = False
        return Columns(**arrays, given=frozenset(self._given))

    def _add(self, name: str, values: NDArray[Any]) -> None:
        column = self._columns[name]
        column.frombytes(values.astype(_type(column), copy=False).tobytes())


def _type(column: array[int]) -> np.dtype[Any]:
    return np.dtype(column.typecode)
