"""What a sweep (`-m`) will try, and what came out of it."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from pipeline.compose import Composed, Composer
from pipeline.errors import Refused
from pipeline.overrides import Words, read
from pipeline.terminal import shown_path

STOPPED = frozenset({130, 143})
"""Exit codes of a trial that was stopped on request; its sweep stops too."""
CHECKED = 1_000
"""Combinations that are validated before the first trial; later ones are when they start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial that has ended."""

    number: int
    directory: Path
    command: list[str]
    """The command that runs this trial alone."""
    overrides: tuple[str, ...]
    objective: float
    """NaN where the trial failed or did not measure it."""
    exit_code: int

    @property
    def status(self) -> str:
        """How the trial ended."""
        if self.exit_code in STOPPED:
            return "interrupted"
        return "failed" if self.exit_code else "succeeded"


def first(words: Words) -> Words:
    """Return the words with the first value of each sweep that lists its values."""
    listed = [word for word in words.overrides if not word.is_interval_sweep()]
    return words.replaced(_alternatives(word, searches=False)[0] for word in listed)


def combinations(words: Words, composed: Composed, composer: Composer) -> Iterator[Words]:
    """Yield what each trial is given: the first ones only, where there are very many.

    A range to search in stands for its two ends. Raises `Refused` where the sweeper cannot
    search in one.
    """
    params = [f"{key}={value}" for key, value in composed.params.items()]
    swept = read(params, composer.loader, sweeping=True)
    searches = composed.choices["hydra/sweeper"] != "basic"
    given = (*swept.overrides, *words.overrides)
    lists = [_alternatives(word, searches=searches) for word in given]
    for chosen in itertools.islice(itertools.product(*lists), CHECKED):
        yield words.replaced(chosen)


def _alternatives(word: Override, *, searches: bool) -> list[Override]:
    key, value = word.key_or_group, word.value()
    if not word.is_sweep_override():
        return [word]
    if isinstance(value, IntervalSweep):
        if not searches:
            mend = f"list the values: {key}={value.start},{value.end}"
            raise Refused(key, "found an interval, but the grid sweeper takes values", mend)
        values = [str(value.start), str(value.end)]
    else:
        values = list(word.sweep_string_iterator())
    if not values:
        raise Refused(key, "found no value to sweep over")
    return OverridesParser.create().parse_overrides([f"{key}={each}" for each in values])


def summary(trials: Sequence[Trial], objective: str) -> list[str]:
    """Return the table of all trials, how to run the best again, and where the sweep lies."""
    from rich.table import Table

    from pipeline.summary import render

    measured = [trial for trial in trials if math.isfinite(trial.objective)]
    best = min(measured, key=lambda trial: trial.objective, default=None)
    shared = set.intersection(*(set(trial.overrides) for trial in trials))
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("trial", "overrides", "status", objective, ""):
        table.add_column(column, overflow="fold")
    for trial in trials:
        own = " ".join(word for word in trial.overrides if word not in shared)
        value = f"{trial.objective:.4f}" if trial in measured else "-"
        mark = "best" if trial is best else ""
        table.add_row(str(trial.number), own or "-", trial.status, value, mark)
    lines = ["", render(table), ""]
    if best:
        lines.append(f"best: trial {best.number}, again by: {shlex.join(best.command)}")
    return [*lines, f"sweep: {shown_path(trials[0].directory.parent)}"]
