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

REFRESH_SECONDS = 0.1
GAP = "  "
DISPENSABLE = ("memory", "epoch", "tokens", "valid", "loss", "left")
"""Parts of the live line that a narrow terminal loses, first to last."""


class LiveLine:
    """The last line of the terminal, redrawn in place; log lines written through it stay above."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._parts: dict[str, str] = {}
        self._drawn_at = 0.0
        self._stage = ""
        self._started = 0.0
        self._done_before = 0

    def show(self, stage: str, done: int, total: int, fields: Mapping[str, float]) -> None:
        """Draw the state of `stage`: `done` of `total`, the fields, and the time that is left."""
        now = time.monotonic()
        if stage != self._stage or done == self._done_before:
            # What was done before, of a resumed stage, and the time before the first step say
            # nothing of what is left.
            self._stage, self._started, self._done_before = stage, now, done
        if now - self._drawn_at < REFRESH_SECONDS and done < total:
            return
        self._drawn_at = now
        rate = (done - self._done_before) / max(now - self._started, REFRESH_SECONDS)
        self._parts = describe(stage, done, total, fields, (total - done) / rate if rate else None)
        self._draw()

    def write(self, text: str) -> int:
        """Write log text above the live line; what a logging stream handler calls."""
        self._stream.write(("\r\x1b[2K" if self._parts else "") + text)
        self._draw()
        return len(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._stream.flush()

    def clear(self) -> None:
        """Remove the live line."""
        if self._parts:
            self._parts = {}
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _draw(self) -> None:
        if self._parts:
            # Room for the ^C that a terminal adds: a line that wraps cannot be erased.
            width = shutil.get_terminal_size().columns - 3
            self._stream.write("\r\x1b[2K" + fitted(self._parts, width))
            self._stream.flush()


def describe(
    stage: str, done: int, total: int, fields: Mapping[str, float], seconds_left: float | None
) -> dict[str, str]:
    """Return the parts of the live line: share done, named fields, memory, the time that is left.

    A part whose field is missing is left out, and so is an unknown time.
    """
    parts = {"stage": f"{stage:<9} {done:>{len(str(total))}}/{total}"}
    if "epoch" in fields:
        parts["epoch"] = f"epoch {fields['epoch']:.0f}/{fields['epochs']:.0f}"
    if "validating" in fields:
        parts["loss"] = f"validating {fields['validating']:.0%}"
    elif "loss" in fields:
        parts["loss"] = f"loss {fields['loss']:.3f}"
    if "valid_loss" in fields:
        parts["valid"] = f"valid {fields['valid_loss']:.3f}"
    if "tokens_per_second" in fields:
        parts["tokens"] = f"{fields['tokens_per_second']:,.0f} tok/s"
    if "memory_bytes" in fields:
        parts["memory"] = f"{fields['memory_bytes'] / 2**30:.1f} GiB"
    if seconds_left is not None and done < total:
        parts["left"] = f"{countdown(seconds_left)} left"
    return parts


def fitted(parts: Mapping[str, str], width: int) -> str:
    """Return the live line: narrow gaps where it is too long for `width` columns, then less."""
    line = GAP.join(parts.values())
    if len(line) <= width:
        return line
    kept = {name: " ".join(text.split()) for name, text in parts.items()}
    for name in DISPENSABLE:
        if len(" ".join(kept.values())) <= width:
            break
        kept.pop(name, None)
    return " ".join(kept.values())[:width]


def countdown(seconds: float) -> str:
    """Return a length of time that keeps its width as it runs out: `0:05`, `3:20`, `2:10:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
