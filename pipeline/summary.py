"""The lines and tables that say what a run did and what came out."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.manifest import Entry
from pipeline.record import RunRecord
from pipeline.terminal import duration, shown_path

log = logging.getLogger("pipeline")

SHOWN = (
    ("train.loss", "training loss, last epoch", "{:.4f}"),
    ("valid.loss_before", "validation loss before, all rows", "{:.4f}"),
    ("valid.loss", "validation loss of the kept adapter, all rows", "{:.4f}"),
    ("train.steps", "steps", "{:,.0f}"),
    ("train.best_step", "step of the kept adapter", "{:,.0f}"),
    ("train.trainable_parameters", "trained parameters", "{:,.0f}"),
    ("train.supervised_tokens", "supervised tokens", "{:,.0f}"),
    ("train.tokens_per_second", "tokens per second", "{:,.0f}"),
    ("train.padding_fraction", "share of padding in what is computed", "{:.1%}"),
)

COMPARED = {
    "loss": "{:.4f}",
    "perplexity": "{:,.2f}",
    "bits_per_byte": "{:.4f}",
    "exact_match": "{:.1%}",
    "json_valid": "{:.1%}",
    "slot_f1": "{:.1%}",
    "stop_rate": "{:.1%}",
}


def stage_line(entry: Entry, reused: bool) -> str:
    """Return the one line of a finished stage: what happened, its key, and what it cost."""
    cost = duration(entry.seconds)
    what = f"made {age(entry.created)}, took {cost}" if reused else f"in {cost}"
    return f"{entry.stage:<9} {'reused' if reused else 'ran':<7} {entry.key[:8]}  {what}"


def doctor_lines(entry: Entry, run: Path, reused: bool) -> list[str]:
    """Return where the report on the data lies and, of rows prepared before, its advice again."""
    try:
        doctor = json.loads((entry.directory / "doctor.json").read_text(encoding="utf-8"))
        advice = [f"! {sentence}" for sentence in doctor["advice"]]
    # Another prepare function need not write such a report.
    except (OSError, ValueError, KeyError, TypeError):
        return []
    page = shown_path(run / "prepare" / "doctor.html")
    return [*(advice if reused else []), f"the data, with five rows as they are trained: {page}"]


def age(created: str) -> str:
    """Return how long ago an ISO time was, as a person says it."""
    then = datetime.fromisoformat(created)
    seconds = (datetime.now(then.tzinfo) - then).total_seconds()
    if seconds < 5:
        return "just now"
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return f"{int(seconds)} seconds ago"


def show(record: RunRecord, *, figures: bool = True) -> None:
    """Log the figures of training, base versus tuned, and as the last line where the run lies."""
    metrics, peak = (record.metrics if figures else {}), record.peak_memory_bytes
    rows = [(text, form.format(metrics[name])) for name, text, form in SHOWN if name in metrics]
    if peak and "train.loss" in metrics:
        rows.append(("peak memory", f"{peak / 2**30:.2f} GiB"))
    if rows:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right")
        for row in rows:
            table.add_row(*row)
        log.info("\n%s", render(table))
    if compared := comparison(metrics):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("held-out rows scored")
        for column in ("base", "tuned", "difference"):
            table.add_column(column, justify="right")
        for line in compared:
            table.add_row(*line)
        log.info("\n%s\n", render(table))
    log.info("run: %s", shown_path(record.directory))


def comparison(metrics: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return a line for each metric of each split that both base and tuned have."""
    lines = []
    for split in ("valid", "test"):
        for name, form in COMPARED.items():
            base, tuned = (metrics.get(f"{who}.{split}.{name}") for who in ("base", "tuned"))
            if base is not None and tuned is not None:
                sign = "+" if tuned >= base else "-"
                values = (form.format(value) for value in (base, tuned))
                change = f"{sign}{form.format(abs(tuned - base))}"
                lines.append((f"{split} {name.replace('_', ' ')}", *values, change))
    return lines


def render(table: Any) -> str:
    """Return a rich renderable as text, in colour where standard output is a terminal."""
    target = io.StringIO()
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    Console(file=target, width=width, force_terminal=sys.stdout.isatty()).print(table)
    return target.getvalue().rstrip("\n")
