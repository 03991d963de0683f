"""How much memory there is for training, on this machine and within its container."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""Of version 1: no limit is written as the largest number of pages."""


def available_bytes() -> int:
    """Return the memory that this process may still come to hold, with what it holds already."""
    device = {} if mx.default_device() == mx.cpu else mx.device_info()
    if sys.platform != "linux":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(whole, int(device.get("max_recommended_working_set_size", whole)))
    if total := device.get("total_memory"):
        return int(total)
    return choose(
        _read(Path("/proc/meminfo")),
        _read(Path("/proc/self/status")),
        group_files(_read(Path("/proc/self/cgroup"))),
    )


def choose(meminfo: str, status: str, groups: Iterable[tuple[str, str]]) -> int:
    """Return what Linux says: the least of the machine and of each group, as (limit, usage).

    The texts are those of /proc/meminfo, /proc/self/status and of the groups' files; a limit that
    is none, or a file that is not there, does not count.
    """
    own = _kilobytes(status, "VmRSS")
    found = [_kilobytes(meminfo, "MemAvailable") + own]
    for limit, usage in groups:
        if limit.strip().isdecimal() and int(limit) < _UNLIMITED_BYTES:
            used = int(usage) if usage.strip().isdecimal() else own
            found.append(int(limit) - max(used - own, 0))
    return max(min(found), 0)


def group_files(membership: str) -> list[tuple[str, str]]:
    """Return limit and usage of each control group of memory above this process, as texts."""
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        names = (("memory.max", "memory.current") if not controllers
                 else ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # fmt: skip
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(root):
                limit, usage = (_read(folder / name) for name in names)
                found.append((limit, usage))
    return found


def _kilobytes(text: str, name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
