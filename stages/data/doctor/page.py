"""The data doctor's findings as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.data.doctor.advice import advice, counted, listed, share
from stages.data.doctor.findings import Example, Findings, Split, round_numbers
from stages.data.doctor.html import TEMPLATE
from stages.data.doctor.privacy import EMAIL
from stages.data.doctor.table import split_rows
from stages.data.encoding.examples import NOTES

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 340, 170, 44, 10, 24
_TICKS = 5
_LINES = 4  # above the lowest
# Control characters would be dropped, or break the page; these pictures stand for them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram, in the units of the picture."""

    x: float
    y: float
    width: float
    height: float
    title: str
    rest: bool
    """Whether it holds all longer rows."""


@dataclass(frozen=True, slots=True)
class Chart:
    """The picture of one split's lengths."""

    name: str
    bars: list[Bar]
    levels: list[tuple[float, str]]
    """Heights of the lines across, with their counts."""
    ticks: list[tuple[float, str, str]]
    """Places of the lengths below, with their anchors."""
    rest: bool
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT


def page(findings: Findings) -> str:
    """Return the page; texts of rows and files are escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["n"] = lambda count: f"{count:,}"
    notes = [(NOTES[name], count) for name, count in findings.notes.items() if count]
    return environment.from_string(TEMPLATE).render(
        f=findings,
        facts=_facts(findings),
        advice=advice(findings),
        split_rows=split_rows(findings),
        repeated_rows=list(_repeated_rows(findings)),
        charts=[chart(name, split) for name, split in findings.splits.items() if split.rows],
        notes=notes,
        private=list(_private(findings)),
        examples=[_visible(example) for example in findings.examples],
        formats=listed(findings.formats.items()),
        identity=list(_identity(findings)),
    )


def chart(name: str, split: Split) -> Chart:
    """Return the picture of a split that has rows."""
    bounds, counts = split.bounds, split.counts
    line = next(count for count in round_numbers() if max(counts) <= _LINES * count)
    top = -(-max(counts) // line) * line
    step, high = (_WIDTH - _LEFT) / len(counts), _HEIGHT - _TOP - _BOTTOM
    rest = bounds[-1] - bounds[-2] > bounds[1] - bounds[0]
    bars = []
    for index, count in enumerate(counts):
        height = round(high * count / top, 2)
        first, last = bounds[index], bounds[index + 1] - 1
        lengths = counted(last, "token")
        if first < last:
            lengths = f"{first:,} to {lengths}"
        bars.append(Bar(
            x=round(_LEFT + index * step + 1, 2), y=round(_TOP + high - height, 2),
            width=round(step - 2, 2), height=height, title=f"{lengths}: {counted(count, 'row')}",
            rest=rest and index == len(counts) - 1,
        ))  # fmt: skip
    levels = [
        (round(_TOP + high * (1 - count / top), 2), f"{count:,}")
        for count in range(0, top + 1, line)
    ]
    return Chart(name, bars, levels, _ticks(bounds, step), rest)


def _ticks(bounds: tuple[int, ...], step: float) -> list[tuple[float, str, str]]:
    last = len(bounds) - 1
    every = -(-last // (_TICKS - 1))
    # A tick just before the last one would run into it.
    shown = [index for index in range(0, last, every) if last - index > every / 2] + [last]
    anchors = {0: "start", last: "end"}
    return [
        (round(_LEFT + index * step, 2), anchors.get(index, "middle"), f"{bounds[index]:,}")
        for index in shown
    ]


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    for name, split in findings.splits.items():
        yield f"{split.rows:,}", f"rows of {name}"
    tokens = sum(split.tokens for split in findings.splits.values())
    supervised = sum(split.supervised_tokens for split in findings.splits.values())
    yield f"{tokens:,}", "tokens"
    if tokens:
        yield share(supervised, tokens), "of them supervised"
    yield f"{max(split.longest for split in findings.splits.values()):,}", "tokens in the longest"


def _repeated_rows(findings: Findings) -> Iterator[tuple[str, list[str]]]:
    near, splits = findings.near, findings.splits
    found = [split.found for split in splits.values()]
    rows = [
        ("repeat an earlier row to the letter", [f.exact_duplicates for f in found]),
        ("repeat an earlier row", [f.duplicates for f in found]),
        ("ask what an earlier row asks", [f.repeated_questions for f in found]),
        ("… and answer otherwise", [f.other_answers for f in found]),
        ("ask nearly what another row asks", [near.within.get(name, 0) for name in splits]),
        ("repeat a row of train to the letter", [f.exact_in_train for f in found]),
        ("ask what a row of train asks", [f.asked_in_train for f in found]),
        ("ask nearly what a row of train asks", [near.in_train.get(name, 0) for name in splits]),
        ("removed, as a held-out row asks the same", [f.removed_leaks for f in found]),
        ("removed, as an earlier row says the same", [f.removed_duplicates for f in found]),
        ("left out by weight", [f.left_out for f in found]),
        ("added by weight", [f.repeated for f in found]),
    ]
    for label, counts in rows:
        if any(counts):
            yield label, [f"{count:,}" for count in counts]


def _private(findings: Findings) -> Iterator[tuple[str, int]]:
    if findings.private.get(EMAIL):
        yield "e-mail addresses", findings.private[EMAIL]
    for kind, count in findings.secrets.items():
        yield f"likely secrets: {kind.replace('_', ' ')}", count


def _identity(findings: Findings) -> Iterator[tuple[str, str]]:
    template = findings.template
    if template is not None:
        yield "chat template", template.name + " (data.chat_template)" * template.given
        yield "… SHA-256", template.sha256
    yield "tokenizer SHA-256", findings.tokenizer_sha256
    yield "stop tokens", ", ".join(f"{text} ({number})" for number, text in findings.stop_tokens)
    for key, value in findings.settings.items():
        yield f"data.{key}", str(value)


def _visible(example: Example) -> dict[str, Any]:
    """Return an example with each piece as lines, its control characters visible."""
    pieces = [
        (text.translate(_PICTURES).split("\n"), supervised) for text, supervised in example.pieces
    ]
    return {
        "source": example.source,
        "tokens": example.tokens,
        "supervised_tokens": example.supervised_tokens,
        "pieces": pieces,
    }
