"""The memory that a training process holds, checked against what it may."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import mlx.core as mx

from stages.errors import OutOfMemory
from stages.memory import shown
from stages.training.progress import peak_memory_bytes

P = ParamSpec("P")
R = TypeVar("R")


def held_bytes() -> int:
    """Return the memory this process holds now: resident, or MLX's arrays on a GPU."""
    if mx.default_device() != mx.cpu:
        return mx.get_active_memory()
    return _resident_bytes("VmRSS") or peak_memory_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held, without what its parent held before."""
    if mx.default_device() != mx.cpu:
        return mx.get_peak_memory()
    return _resident_bytes("VmHWM") or peak_memory_bytes()


def _resident_bytes(name: str) -> int:
    """Return a line of Linux's own account; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    match = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


class Limited:
    """Watches that this process holds no more than it may; None watches nothing.

    The limit is that of all `ranks` together.
    """

    def __init__(self, limit_bytes: int | None, ranks: int = 1) -> None:
        self.limit_bytes = None if limit_bytes is None else limit_bytes // ranks
        self._before = peak_bytes()

    def check(self) -> None:
        """Raise OutOfMemory where the process holds, or has held since, more than it may."""
        if self.limit_bytes is None:
            return
        if mx.get_active_memory() + mx.get_cache_memory() > self.limit_bytes:
            mx.clear_cache()  # What a GPU keeps for later arrays; they would fit without.
        peak = peak_bytes()
        # A peak from before is that of another stage.
        held = max(held_bytes(), peak if peak > self._before else 0)
        if held > self.limit_bytes:
            found = f"training held {shown(held)}, more than {shown(self.limit_bytes)}"
            raise OutOfMemory("train.memory_limit", found, "raise it, or lower train.batch_size")

    def over(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return `function`, which checks before each call."""

        def checked(*arguments: P.args, **options: P.kwargs) -> R:
            self.check()
            return function(*arguments, **options)

        return checked
