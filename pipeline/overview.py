"""What became of each run, as far as its directory shows; a damaged record hides no other run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.latest import label, run_directories
from pipeline.locks import holder
from pipeline.record import LOCK, read_run

DIED = "died"
"""Status shown for a run that says it is running while nobody holds its lock."""
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One run in a line."""

    run: str
    """Name and stamp; of a sweep's trial also its number."""
    directory: str
    status: str
    started: str | None = None
    seconds: float | None = None
    """How long it took, or has been running."""
    model: str | None = None
    data: str | None = None
    adapter: str | None = None
    """Kind and rank: `lora r8`."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    error: str | None = None


def overviews(outputs: Path, name: str | None = None) -> list[Overview]:
    """Return every run and trial under `outputs`, oldest first, of one name if it is given."""
    directories = sorted(run_directories(outputs, name), key=lambda d: _age_order(d, outputs))
    return [_overview(directory, outputs) for directory in directories]


def newest_run(outputs: Path, name: str | None = None) -> Path | None:
    """Return the newest run or trial, whatever became of it."""
    return max(run_directories(outputs, name), key=lambda d: _age_order(d, outputs), default=None)


def shown_status(directory: Path, run: Mapping[str, Any]) -> str:
    """Return the recorded status, or `died` if the process that would end it is gone."""
    gone = run["status"] == "running" and holder(directory / LOCK) is None
    return DIED if gone else str(run["status"])


def seconds_taken(run: Mapping[str, Any], status: str) -> float | None:
    """Return how long a run took or has been running; nobody knows that of one that died."""
    if status == DIED:
        return None
    end = run.get("finished") or datetime.now(UTC).isoformat()
    return (datetime.fromisoformat(end) - datetime.fromisoformat(run["started"])).total_seconds()


def _overview(directory: Path, outputs: Path) -> Overview:
    run, place = label(directory, outputs), str(directory)
    try:
        record = read_run(directory)
        status = shown_status(directory, record)
        seconds = seconds_taken(record, status)
    except PipelineError as error:
        return Overview(run=run, directory=place, status=UNREADABLE, error=str(error))
    except (ValueError, TypeError) as error:
        return Overview(run=run, directory=place, status=UNREADABLE, error=f"{place}: {error}")
    groups = {
        key: value if isinstance(value, dict) else {} for key, value in record["config"].items()
    }
    lora = groups.get("lora", {})
    return Overview(
        run=run,
        directory=place,
        status=status,
        started=record["started"],
        seconds=seconds,
        model=groups.get("model", {}).get("path"),
        data=groups.get("data", {}).get("path"),
        adapter=f"{lora['type']} r{lora['rank']}" if {"type", "rank"} <= lora.keys() else None,
        metrics=record["metrics"],
        error=record.get("error"),
    )


def _age_order(directory: Path, outputs: Path) -> tuple[str, int, str]:
    """Sort by stamp, the trials of one sweep by number, and equal ones by name."""
    name, stamp, *trial = label(directory, outputs).split("/")
    number = int(trial[0]) if trial and trial[0].isdecimal() else -1
    return stamp, number, name
