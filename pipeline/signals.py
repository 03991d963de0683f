"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def watched(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take SIGINT and SIGTERM for the block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, old in before.items():
            signal.signal(number, old)
