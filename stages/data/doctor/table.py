"""The data doctor's findings as a few lines for a terminal."""

from __future__ import annotations

from textwrap import wrap

from stages.data.doctor.advice import advice, counted, listed
from stages.data.doctor.findings import Findings
from stages.data.encoding.examples import NOTES

WIDTH = 100
_BARS = "▁▂▃▄▅▆▇█"


def table(findings: Findings) -> list[str]:
    """Return the lines: counts by split, the lengths of train as bars, notes and advice.

    Each has at most 100 characters. Counts that are 0 in every split are left out.
    """
    return [
        _title(findings),
        *_grid(findings),
        *_bars(findings),
        *_notes(findings),
        *(line for text in advice(findings) for line in _folded(f"! {text}", "  ")),
    ]


def split_rows(findings: Findings) -> list[tuple[str, list[str]]]:
    """Return what is counted of every split, and the counts."""
    splits = findings.splits.values()
    rows = [
        ("rows", [split.rows for split in splits]),
        ("tokens", [split.tokens for split in splits]),
        ("supervised tokens", [split.supervised_tokens for split in splits]),
        ("half the rows up to", [split.percentiles["50"] for split in splits]),
        ("99 % of them up to", [split.percentiles["99"] for split in splits]),
        ("longest", [split.longest for split in splits]),
    ]
    return [(label, [f"{count:,}" for count in counts]) for label, counts in rows]


def _found_rows(findings: Findings) -> list[tuple[str, list[str]]]:
    splits, near = findings.splits, findings.near
    found = [split.found for split in splits.values()]
    rows = [
        ("repeat an earlier row", [counts.duplicates for counts in found]),
        ("ask again, other answer", [counts.other_answers for counts in found]),
        ("nearly ask again", [near.within.get(name, 0) for name in splits]),
        ("asked in train", [counts.asked_in_train for counts in found]),
        ("nearly asked in train", [near.in_train.get(name, 0) for name in splits]),
        ("removed as asked elsewhere", [counts.removed_leaks for counts in found]),
        ("removed as repeated", [counts.removed_duplicates for counts in found]),
        ("left out by weight", [counts.left_out for counts in found]),
        ("added by weight", [counts.repeated for counts in found]),
    ]
    return [(label, [f"{n:,}" for n in counts]) for label, counts in rows if any(counts)]


def _title(findings: Findings) -> str:
    files = sum(len(source.files) for source in findings.sources)
    formats = listed(findings.formats.items())
    return f"{findings.kind} · {counted(findings.rows_read, 'row')} ({formats}) of " + counted(
        files, "file"
    )


def _grid(findings: Findings) -> list[str]:
    rows = [("", list(findings.splits)), *split_rows(findings), *_found_rows(findings)]
    label = max(len(name) for name, _ in rows)
    widths = [max(7, *map(len, column)) for column in zip(*(row for _, row in rows), strict=True)]
    return [
        "  ".join([name.ljust(label), *(c.rjust(w) for c, w in zip(row, widths, strict=True))])
        for name, row in rows
    ]


def _bars(findings: Findings) -> list[str]:
    train = findings.splits["train"]
    if not train.rows:
        return []
    highest = max(train.counts)
    # A bin with few rows still shows a bar; only an empty one shows none.
    bars = "".join(_BARS[(count * 8 - 1) // highest] if count else " " for count in train.counts)
    first, last = train.bounds[0], train.bounds[-1] - 1
    width = train.bounds[1] - first
    text = f"lengths of train  {first:,} {bars} {last:,}  ({counted(width, 'token')} a bar"
    left = train.bounds[-2]
    return [f"{text}, the last from {left:,})" if last + 1 - left > width else f"{text})"]


def _notes(findings: Findings) -> list[str]:
    found = [(NOTES[name], count) for name, count in findings.notes.items() if count]
    return _folded(f"rows: {listed(found)}", "  ") if found else []


def _folded(text: str, indent: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
