"""What a sweep (`-m`) will try, and what came out of it."""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from pipeline.compose import Composed, Composer
from pipeline.errors import Refused
from pipeline.overrides import Words, read
from pipeline.schema import KEYS, Config
from pipeline.terminal import shown_path

STOPPED = frozenset({130, 143})
"""Exit codes of a trial that was stopped on request; its sweep stops too."""
CHECKED = 1_000
"""Combinations that are validated before the first trial; later ones are when they start."""
STUDY = "study"
"""The sweeper (conf/hydra/sweeper) that searches; every other one tries what it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial that has begun."""

    number: int
    overrides: tuple[str, ...]
    status: str
    objective: float
    """NaN where the trial failed or did not measure it."""
    command: list[str]
    """The command that runs this trial alone."""


def study_path(outputs: str, name: str) -> Path:
    """Return the file of the study of that name."""
    return Path(outputs) / "studies" / f"{name}.log"


def searches(composed: Composed) -> bool:
    """Say whether the chosen sweeper searches."""
    return composed.choices["hydra/sweeper"] == STUDY


def without_sweeper(words: Sequence[str]) -> list[str]:
    """Return the words that mean something to a single run, too."""
    return [word for word in words if word.partition("=")[0].partition(".")[0] != "sweeper"]


def first(words: Words) -> Words:
    """Return the words with the first value of each sweep that lists its values."""
    listed = [word for word in words.overrides if not word.is_interval_sweep()]
    return words.replaced(_alternatives(word, searches=False)[0] for word in listed)


def check(words: Words, composed: Composed, *, sweeping: bool) -> None:
    """Refuse settings of the sweeper that would change nothing, or leave it without an end."""
    for word in words.overrides:
        if not sweeping and word.key_or_group.partition(".")[0] == "sweeper":
            mend = f"add -m: python -m pipeline -m {word.input_line}"
            raise Refused(word.key_or_group, "says how to run several trials", mend)
    trials = composed.config.sweeper.trials
    if searches(composed) and trials is None:
        found = "found null, but a search has an end"
        raise Refused("sweeper.trials", found, "set sweeper.trials=20")
    if not searches(composed) and trials is not None:
        mend = "leave it out, or search: sweeper=tpe or sweeper=random"
        raise Refused("sweeper.trials", "a grid tries every combination and does not use it", mend)


def space(words: Words, composed: Composed, composer: Composer) -> Words:
    """Return the words with what the sweeper itself sweeps over, as far as it is not given.

    What a search would try by itself is left out where it is null, or the key is (not used).
    Raises `Refused` for a search in nothing.
    """
    own = [
        f"{key}={value}"
        for key, value in composed.params.items()
        if not searches(composed) or (value is not None and _is_used(key, composed.config))
    ]
    swept = read(own, composer.loader, sweeping=True)
    last = {word.key_or_group: word for word in (*swept.overrides, *words.overrides)}
    if searches(composed) and not any(word.is_sweep_override() for word in last.values()):
        mend = "give a key several values or a range, such as lora.rank=4,8,16"
        raise Refused("sweeper", "found nothing to search", mend)
    return words.replaced(last.values())


def _is_used(key: str, config: DictConfig) -> bool:
    return OmegaConf.select(config, key) is not None or key in OmegaConf.missing_keys(config)


def combinations(words: Words, composed: Composed) -> Iterator[Words]:
    """Yield what each trial is given: the first ones only, where there are very many.

    A range to search in stands for its two ends. Raises `Refused` where the sweeper cannot
    search in one.
    """
    lists = [_alternatives(word, searches=searches(composed)) for word in words.overrides]
    for chosen in itertools.islice(itertools.product(*lists), CHECKED):
        yield words.replaced(chosen)


def _alternatives(word: Override, *, searches: bool) -> list[Override]:
    key, value = word.key_or_group, word.value()
    if not word.is_sweep_override():
        return [word]
    if isinstance(value, IntervalSweep):
        if not searches:
            mend = f"list values: {key}={value.start},{value.end}; or search: sweeper=tpe"
            raise Refused(key, "found an interval, but the grid sweeper takes values", mend)
        if isinstance(value.start, float) and _is_whole(key):
            text = str(word.input_line).partition("=")[2]
            mend = f"write '{key}=int({text})'"
            raise Refused(key, "found a range of fractions, expected whole numbers", mend)
        values = [str(value.start), str(value.end)]
    else:
        values = list(word.sweep_string_iterator())
    if not values:
        raise Refused(key, "found no value to sweep over")
    return OverridesParser.create().parse_overrides([f"{key}={each}" for each in values])


def _is_whole(key: str) -> bool:
    kinds = (KEYS.get(key), *get_args(KEYS.get(key)))
    return int in kinds and float not in kinds


def announcement(words: Words, config: Config) -> str:
    """Say what a search will try."""
    swept = " ".join(str(word.input_line) for word in words.overrides if word.is_sweep_override())
    return f"search: {config.sweeper.trials} trials over {swept}"


def own_overrides(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials, each with the overrides that not all of them have."""
    shared = set.intersection(*(set(trial.overrides) for trial in trials))
    return [
        replace(trial, overrides=tuple(word for word in trial.overrides if word not in shared))
        for trial in trials
    ]


def show(trials: Sequence[Trial], objective: str, **places: Path | None) -> None:
    """Print the table of all trials, how to run the best again, and where everything lies."""
    from rich.table import Table

    from pipeline.summary import render

    measured = [trial for trial in trials if math.isfinite(trial.objective)]
    best = min(measured, key=lambda trial: trial.objective, default=None)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("trial", "overrides", "status", objective, ""):
        table.add_column(column, overflow="fold")
    for trial in trials:
        value = f"{trial.objective:.4f}" if trial in measured else "-"
        own = " ".join(trial.overrides) or "-"
        table.add_row(str(trial.number), own, trial.status, value, "best" if trial is best else "")
    lines = ["", render(table), ""]
    if best:
        lines.append(f"best: trial {best.number}, again by: {shlex.join(best.command)}")
    lines += [f"{what}: {shown_path(place)}" for what, place in places.items() if place]
    sys.stdout.write("\n".join(lines) + "\n")
