"""What a person sees while a run goes: one live line, and the log lines that scroll above it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LABELS = {
    "loss": "loss {:.3f}",
    "valid_loss": "valid {:.3f}",
    "tokens_per_second": "{:,.0f} tok/s",
}
REFRESH_SECONDS = 0.1
GAP = "  "


class LiveLine:
    """The last line of the terminal, redrawn in place; log lines written through it stay above."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""
        self._drawn_at = 0.0
        self._stage = ""
        self._started = 0.0

    def show(self, stage: str, done: int, total: int, fields: Mapping[str, float]) -> None:
        """Draw the state of `stage`: `done` of `total`, the fields, and the time that is left."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started = stage, now
        if now - self._drawn_at < REFRESH_SECONDS and done < total:
            return
        self._drawn_at = now
        self._line = describe(stage, done, total, fields, now - self._started)
        self._draw()

    def write(self, text: str) -> int:
        """Write log text above the live line; what a logging stream handler calls."""
        self._stream.write(("\r\x1b[2K" if self._line else "") + text)
        self._draw()
        return len(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._stream.flush()

    def clear(self) -> None:
        """Remove the live line."""
        if self._line:
            self._line = ""
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _draw(self) -> None:
        if self._line:
            # Room for the ^C that a terminal adds: a line that wraps cannot be erased.
            width = shutil.get_terminal_size().columns - 3
            self._stream.write("\r\x1b[2K" + fitted(self._line, width))
            self._stream.flush()


def describe(stage: str, done: int, total: int, fields: Mapping[str, float], seconds: float) -> str:
    """Return the live line's text: share done, named fields, memory and the time that is left."""
    parts = [f"{stage:<9} {done:>{len(str(total))}}/{total}"]
    parts += [form.format(fields[name]) for name, form in LABELS.items() if name in fields]
    if "memory_bytes" in fields:
        parts.append(f"{fields['memory_bytes'] / 2**30:.2f} GiB")
    if 0 < done < total:
        parts.append(f"{duration(seconds / done * (total - done))} left")
    return GAP.join(parts)


def fitted(line: str, width: int) -> str:
    """Return the live line without the parts at its end that `width` columns have no room for."""
    while len(line) > width and GAP in line:
        line = line.rpartition(GAP)[0].rstrip()
    return line[:width]


def duration(seconds: float) -> str:
    """Return a length of time as a person says it: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shown_path(path: Path) -> str:
    """Return `path` as a person would type it here: relative where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@contextmanager
def live_line() -> Iterator[LiveLine | None]:
    """Give a live line where standard output is a terminal that can erase; else None."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    line = LiveLine(sys.stdout)
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout
    ]
    for handler in handlers:
        handler.setStream(line)
    try:
        yield line
    finally:
        line.clear()
        for handler in handlers:
            handler.setStream(sys.stdout)
