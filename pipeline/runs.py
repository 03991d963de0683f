"""Look at the runs there are: `python -m pipeline.runs ls | show`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import PipelineError, Refused
from pipeline.latest import find_run, label, run_directories
from pipeline.overview import (
    UNREADABLE,
    Overview,
    newest_run,
    overviews,
    seconds_taken,
    shown_status,
)
from pipeline.record import read_run
from pipeline.resolved import flat
from pipeline.spelling import closest
from pipeline.summary import age
from pipeline.terminal import duration, shown_path

FORMAT = 1
_GAP = 2
_RIGHT = ("valid.loss", "tok/s", "took", "started")
_FIRST_LEFT_OUT = ("took", "started", "tok/s", "data", "model", "adapter")
"""Columns of `ls` that a narrow terminal does without."""
_STYLES = {"succeeded": "green", "running": "cyan", "interrupted": "yellow"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (0 done, 1 refused, 2 unknown flags, 3 disk)."""
    options = _parser().parse_args(argv)
    try:
        options.command(options)
        sys.stdout.flush()
    except PipelineError as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.runs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="ls | show")
    ls = commands.add_parser("ls", help="list runs and sweep trials, newest last")
    ls.set_defaults(command=_ls)
    show = commands.add_parser("show", help="show one run: stages, metrics, environment")
    show.set_defaults(command=_show)
    show.add_argument(
        "run",
        nargs="?",
        help="a run directory, its name in ls, or latest (the newest that succeeded and has an "
        "adapter); without it the newest, whatever became of it",
    )
    show.add_argument("--config", action="store_true", help="print the whole configuration too")
    for command in (ls, show):
        command.add_argument(
            "--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs"
        )
        command.add_argument("--name", help="only runs of this name")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _ls(options: argparse.Namespace) -> None:
    rows = overviews(options.outputs, options.name)
    if not rows:
        _refuse_unknown_name(options)
    if options.json:
        _print_json({"format": FORMAT, "runs": [asdict(row) for row in rows]})
    elif not rows:
        _print(_nothing_yet(options.outputs))
    else:
        unreadable = (row.error for row in rows if row.status == UNREADABLE)
        _print(_list(rows), *(f"{UNREADABLE}: {error}" for error in unreadable))


def _show(options: argparse.Namespace) -> None:
    if options.run is not None:
        directory = find_run(options.run, options.outputs, options.name)
    else:
        newest = newest_run(options.outputs, options.name)
        if newest is None:
            _refuse_unknown_name(options)
            _print(_nothing_yet(options.outputs))
            return
        directory = newest
    run = read_run(directory)
    status = shown_status(directory, run)
    if options.json:
        _print_json({**run, "directory": str(directory), "status": status})
        return
    sections = {
        "stages": _stages(run),
        "metrics": _pairs(run["metrics"]),
        "environment": _pairs(flat(run["environment"])),
    }
    if options.config:
        sections["config"] = _pairs(flat(run["config"]))
    parts: list[Table | Text | str] = [_head(directory, run, status)]
    for title, table in sections.items():
        if table.row_count:
            parts += ["", Text(title, style="bold"), table]
    _print(*parts)


def _refuse_unknown_name(options: argparse.Namespace) -> None:
    """Refuse a name that no run has, if there are runs of other names."""
    outputs, name = options.outputs, options.name
    names = {label(d, outputs).partition("/")[0] for d in run_directories(outputs)}
    if name is not None and names:
        near = closest(name, names)
        mend = f"did you mean {near}?" if near else f"there are {', '.join(sorted(names))}"
        raise Refused("--name", f"no run is named {name}", mend)


def _nothing_yet(outputs: Path) -> str:
    where = "" if outputs == Path("outputs") else f" outputs={shlex.quote(str(outputs))}"
    return f"no runs under {outputs / 'runs'} yet: python -m pipeline{where} makes the first"


def _list(rows: Sequence[Overview]) -> Table:
    lines = [_cells(row) for row in rows]
    widths = {name: max(len(name), *(len(cells[name]) for cells in lines)) for name in lines[0]}
    for name in _FIRST_LEFT_OUT:
        if sum(widths.values()) + _GAP * len(widths) > _width():
            del widths[name]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for name in widths:
        justify: Literal["left", "right"] = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=name != "data", overflow="fold")
    for cells in lines:
        table.add_row(*(_coloured(cells[n]) if n == "status" else cells[n] for n in widths))
    return table


def _cells(row: Overview) -> dict[str, str]:
    return {
        "run": row.run,
        "status": row.status,
        "model": row.model or "-",
        "data": row.data or "-",
        "adapter": row.adapter or "-",
        "valid.loss": _number(row.metrics.get("valid.loss", "-")),
        "tok/s": _number(row.metrics.get("train.tokens_per_second", "-")),
        "took": "-" if row.seconds is None else duration(row.seconds),
        "started": age(row.started) if row.started else "-",
    }


def _head(directory: Path, run: Mapping[str, Any], status: str) -> Table:
    seconds, peak = seconds_taken(run, status), run.get("peak_memory_bytes")
    started = age(run["started"])
    if seconds is not None:
        started += f", {'for' if status == 'running' else 'took'} {duration(seconds)}"
    model = {**(run.get("model") or {})}
    about = [model.pop("path", None), *(f"{k} {v}" for k, v in model.items() if v is not None)]
    lines = {
        "run": shown_path(directory),
        "status": _coloured(status),
        "started": started,
        "command": shlex.join(map(str, run.get("command") or ())),
        "parent": run.get("parent"),
        "study": run.get("study"),
        "trial": run.get("trial"),
        "model": ", ".join(str(part) for part in about if part is not None),
        "memory": f"{peak / 2**30:.2f} GiB at the peak" if peak else None,
        "error": run.get("error"),
    }
    return _pairs({key: value for key, value in lines.items() if value not in (None, "")})


def _stages(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in ("stage", "key", "status"):
        table.add_column(column)
    for column in ("seconds", "peak"):
        table.add_column(column, justify="right")
    for name, stage in run["stages"].items():
        seconds, peak = stage.get("seconds"), stage.get("peak_memory_bytes")
        table.add_row(
            name,
            str(stage.get("key"))[:8],
            _coloured(str(stage.get("status"))),
            "-" if seconds is None else f"{seconds:.1f}",
            f"{peak / 2**30:.2f} GiB" if peak else "-",
        )
    return table


def _pairs(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key, value if isinstance(value, Text) else _number(value))
    return table


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _coloured(status: str) -> Text:
    return Text(status, style=_STYLES.get(status, "" if status in ("ran", "reused") else "red"))


def _width() -> int:
    # Into a file or a pipe every line stays whole.
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def _print(*parts: Table | Text | str) -> None:
    console = Console(width=_width(), markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
