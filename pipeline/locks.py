"""Locks that die with their holder, however it dies, and never need deleting by hand.

The lock is the kernel's (`flock`) on a file that stays for ever: removing it would let two
processes each lock a file of that name. What the file says about the holder is for people only.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pipeline.durable import reported
from pipeline.errors import Interrupted
from pipeline.resolved import redact

_POLL_SECONDS = 0.1
_PROBE_TRIES = 5
_PROBE_SECONDS = 0.02


class Held(Exception):
    """Say that another process holds the lock, and which one."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description


@contextmanager
def hold(
    path: Path,
    *,
    wait: bool,
    on_wait: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """Hold the lock at `path` for the block.

    Where another holds it: with `wait`, call `on_wait` once with who it is, then wait until it is
    free, or raise `Interrupted` when `stop()` is true; without `wait`, raise `Held`.
    Programs started in the block do not inherit the lock; a bare `os.fork` would.
    """
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with reported(path):
            free = _take(descriptor)
        if not free:
            _acquire(path, descriptor, wait, on_wait, stop)
        with reported(path):
            _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Return who holds the lock at `path`, None if nobody does; writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # Shared, so that two who ask at once do not see each other.
        return None if _take(descriptor, fcntl.LOCK_SH) else _describe(path)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _acquire(
    path: Path,
    descriptor: int,
    wait: bool,
    on_wait: Callable[[str], None] | None,
    stop: Callable[[], bool] | None,
) -> None:
    if not wait:
        # `holder` takes the lock for a moment; that must not make a run fail.
        for _ in range(_PROBE_TRIES):
            time.sleep(_PROBE_SECONDS)
            if _take(descriptor):
                return
        raise Held(_describe(path))
    if on_wait is not None:
        on_wait(_describe(path))
    while not _take(descriptor):
        if stop is not None and stop():
            raise Interrupted(2)
        time.sleep(_POLL_SECONDS)


def _take(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    signature = {
        "format": 1,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now,
        "command": redact(sys.argv),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(signature) + "\n").encode(), 0)


def _describe(path: Path) -> str:
    try:
        signature = json.loads(path.read_bytes())
        since = datetime.fromisoformat(signature["since"])
        return f"process {signature['pid']} on {signature['host']}, since {since:%H:%M:%S}"
    except (OSError, ValueError, KeyError, TypeError):
        # The holder has not signed yet.
        return "another process"
