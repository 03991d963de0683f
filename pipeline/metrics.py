"""`metrics.jsonl`: one row a line, in the run directory and, per stage, in the store."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.durable import reported


class MetricsFile:
    """Append rows to the run's file and to that of the stage in progress."""

    def __init__(self, path: Path) -> None:
        self.stage = ""
        self._path = path
        self._rows: list[IO[str]] = []
        self._start = 0
        with reported(path):
            path.unlink(missing_ok=True)

    def begin(self, stage: str, history: Path) -> None:
        """Start a stage; its rows go to `history` too, which is committed with it."""
        self.stage = stage
        with reported(self._path):
            self._start = self._path.stat().st_size if self._path.exists() else 0
            self._rows = [path.open("a", encoding="utf-8") for path in (self._path, history)]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row: stage, step, seconds since 1970, and the values by their flat names.

        A number that is not finite is null, as JSON knows none.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row = {"stage": self.stage, "step": step, "time": round(time.time(), 3), **finite}
        line = json.dumps(row) + "\n"
        with reported(self._path, len(line)):
            for stream in self._rows:
                stream.write(line)
                stream.flush()

    def forget(self) -> None:
        """Take the rows of the stage in progress back: it starts anew."""
        with reported(self._path):
            os.truncate(self._path, self._start)

    def end(self) -> None:
        """Close the files of the stage in progress."""
        for stream in self._rows:
            with suppress(OSError):  # of a row that `add` could not write, and said so
                stream.close()
        self._rows = []

    def copy(self, history: Path, stage: str) -> None:
        """Append the rows of a reused stage, so that the run shows what it claims."""
        self.stage = stage
        if history.is_file():
            with reported(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(history.read_text(encoding="utf-8"))
