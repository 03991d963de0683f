"""`metrics.jsonl`: one row a line, in the run directory and, per stage, in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO


class MetricsFile:
    """Append rows to the run's file and to that of the stage in progress."""

    def __init__(self, path: Path) -> None:
        self.stage = ""
        self._path = path
        self._rows: list[IO[str]] = []
        path.unlink(missing_ok=True)

    def begin(self, stage: str, history: Path) -> None:
        """Start a stage; its rows go to `history` too, which is committed with it."""
        self.stage = stage
        self._rows = [self._path.open("a", encoding="utf-8"), history.open("w", encoding="utf-8")]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row: stage, step, seconds since 1970, and the values by their flat names."""
        row = {"stage": self.stage, "step": step, "time": round(time.time(), 3), **values}
        line = json.dumps(row) + "\n"
        for stream in self._rows:
            stream.write(line)
            stream.flush()

    def end(self) -> None:
        """Close the files of the stage in progress."""
        for stream in self._rows:
            stream.close()
        self._rows = []

    def copy(self, history: Path, stage: str) -> None:
        """Append the rows of a reused stage, so that the run shows what it claims."""
        self.stage = stage
        if history.is_file():
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(history.read_text(encoding="utf-8"))
