"""What the data doctor knows about prepared rows, as one tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.doctor.privacy import EMAIL
from stages.data.reading.records import Fault
from stages.data.selection.select import SplitCounts

PERCENTS = (50, 90, 99)
_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that was read."""

    name: str
    split: str
    records: int
    """Records read, those that cannot be used included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry of `data.path`."""

    path: str
    files: tuple[SourceFile, ...]
    weight: float | None = None
    """How often an epoch sees it, where `data.weights` is set."""
    revision: str | None = None
    """Commit of a data set on the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows of one split as they are trained or scored, and what was found before."""

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    """Tokens, as in all lengths."""
    percentiles: Mapping[str, int]
    """By `50`, `90` and `99`: the length that so many percent of the rows do not exceed."""
    bounds: tuple[int, ...]
    """Bin i of the histogram holds the lengths from bounds[i] to below bounds[i + 1]."""
    counts: tuple[int, ...]
    found: SplitCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class NearRows:
    """Rows that ask nearly the same."""

    searched: int
    rows: int
    within: Mapping[str, int]
    """Of each split, the rows that have a near-duplicate in it."""
    in_train: Mapping[str, int]
    """Of valid and test, the rows that have a near-duplicate in train."""
    examples: tuple[tuple[str, str, float], ...] = ()
    """Sources of two rows, and their Jaccard index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateUse:
    """The chat template and how it is used."""

    name: str
    """As the page calls it."""
    sha256: str
    given: bool
    """Whether `data.chat_template` names it; else it is the tokenizer's own."""
    treatments: tuple[str, ...] = ()
    """What is done about its quirks, in sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row as it is trained."""

    source: str
    pieces: tuple[tuple[str, bool], ...]
    """Neighbouring tokens as text, and whether they are supervised."""
    tokens: int
    supervised_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is known about the rows of one prepared directory."""

    kind: str
    """chat, text or mixed."""
    settings: Mapping[str, Any]
    """Of the keys of `data` those that the report refers to: max_seq_length, overlong, supervise,
    on_error, encoding, duplicates, leakage."""
    sources: tuple[Source, ...]
    passed_over: tuple[str, ...] = ()
    """Files in the folders that hold no rows."""
    formats: Mapping[str, int]
    """Rows read of each format."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Rows that the encoder treated in some way, by its name in `stages.data.encoding.examples`.
    They are counted before the splits are drawn, since a dropped row goes to none."""
    splits: Mapping[str, Split]
    near: NearRows
    fault_count: int = 0
    """Records that cannot be used, which `quarantine.jsonl` holds."""
    faults: tuple[Fault, ...] = ()
    """The first of them."""
    repairs: Mapping[str, int] = field(default_factory=dict)
    """Of each file that is not UTF-8, the bytes that were read as Windows-1252."""
    private: Mapping[str, int] = field(default_factory=dict)
    """E-mail addresses and likely secrets, by kind."""
    redacted: bool
    template: TemplateUse | None
    """Missing where all rows are text."""
    tokenizer_sha256: str
    stop_tokens: tuple[tuple[int, str], ...]
    """Tokens that end generation: id and text."""
    examples: tuple[Example, ...]

    @property
    def rows_read(self) -> int:
        """Count the rows before any was dropped, removed, split or repeated."""
        return sum(self.formats.values())

    @property
    def secrets(self) -> dict[str, int]:
        """Return how many likely secrets there are of each kind, the most frequent first."""
        found = {kind: count for kind, count in self.private.items() if kind != EMAIL and count}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def metrics(self) -> dict[str, float]:
        """Return the flat metrics of the stage."""
        metrics = {
            f"prepare.{name}.{key}": float(getattr(split, key))
            for name, split in self.splits.items()
            for key in ("rows", "tokens", "supervised_tokens")
        }
        return metrics | {"prepare.dropped_overlong": float(self.notes.get("dropped_overlong", 0))}


def describe(
    lengths: NDArray[np.integer[Any]], supervised_tokens: int, found: SplitCounts
) -> Split:
    """Return what is known of a split by the lengths (rows,) of its rows."""
    bounds, counts = histogram(lengths)
    return Split(
        rows=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        supervised_tokens=supervised_tokens,
        longest=int(lengths.max(initial=0)),
        percentiles=percentiles(lengths),
        bounds=bounds,
        counts=counts,
        found=found,
    )


def percentiles(lengths: NDArray[np.integer[Any]]) -> dict[str, int]:
    """Return for 50, 90 and 99 the shortest length that so many percent of the rows do not exceed.

    Without rows all are 0.
    """
    if not len(lengths):
        return {str(percent): 0 for percent in PERCENTS}
    found = np.percentile(lengths, PERCENTS, method="inverted_cdf")
    return {str(percent): int(length) for percent, length in zip(PERCENTS, found, strict=True)}


def histogram(lengths: NDArray[np.integer[Any]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return at most 20 bins as (bounds, counts); bin i is bounds[i] <= length < bounds[i + 1].

    All bins are equally wide, 1, 2 or 5 times a power of ten, but for the last: where the longest
    hundredth of the rows reaches much further, it holds what is left of them.
    """
    if not len(lengths):
        return (0,), ()
    shortest, longest = int(lengths.min()), int(lengths.max())
    most = percentiles(lengths)["99"]
    width = next(width for width in round_numbers() if _bins(shortest, most, width) < _BINS)
    start = shortest // width * width
    count = _bins(shortest, longest, width)
    if count > _BINS:
        count = _bins(shortest, most, width) + 1
    bounds = [start + number * width for number in range(count + 1)]
    bounds[-1] = max(bounds[-1], ceil((longest + 1) / width) * width)
    counts, _ = np.histogram(lengths, bounds)
    return tuple(bounds), tuple(counts.tolist())


def _bins(shortest: int, longest: int, width: int) -> int:
    return longest // width - shortest // width + 1


def round_numbers() -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, 50 and so on."""
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
