"""Hidden states on disk: one file for some rows, written group by group, read row by row."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.scratch import reported

_INSTEAD = ", or train.prefix_cache_gb=null"
_KEPT = b"\1"


def create(path: Path, size_bytes: int) -> None:
    """Make an empty file of its full size; raises EnvironmentFailure where the disk is too small.

    It takes no space yet: what is written to it does.
    """
    with reported(path, size_bytes, _INSTEAD):
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            file.truncate(size_bytes)


class HiddenFile:
    """A byte for each group, 1 once its rows are there; then the rows, end to end, unpadded.

    Several processes may have it open: whoever writes a group writes the same bytes.
    """

    def __init__(
        self, path: Path, groups: Sequence[Sequence[int]], row_bytes: Sequence[int]
    ) -> None:
        """Lay out the rows of `groups`; `row_bytes` has the size of every row."""
        self.path, self._groups = path, groups
        self._starts: dict[int, int] = {}
        self._sizes = row_bytes
        end = len(groups)
        for group in groups:
            for row in group:
                self._starts[row] = end
                end += row_bytes[row]
        self.size_bytes = end
        self._descriptor = -1

    def open(self) -> None:
        """Open the file, which `create` has made once for all processes."""
        self._descriptor = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def holds(self, group: int) -> bool:
        """Tell whether the rows of a group are there."""
        return os.pread(self._descriptor, 1, group) == _KEPT

    def write(self, group: int, rows: Sequence[NDArray[Any]]) -> None:
        """Keep the rows of a group; raises EnvironmentFailure where the disk takes no more."""
        content = b"".join(row.tobytes() for row in rows)
        with reported(self.path, len(content), _INSTEAD):
            _write(self._descriptor, content, self._starts[self._groups[group][0]])
            # Last: whoever sees it finds the rows.
            _write(self._descriptor, _KEPT, group)

    def read(self, row: int, dtype: Any) -> NDArray[Any]:
        """Return what was kept of a row."""
        start, size = self._starts[row], self._sizes[row]
        pieces, found = [], 0
        with reported(self.path, 0):
            while found < size:
                # A mapping would be no faster, and would count as memory of this process.
                piece = os.pread(self._descriptor, size - found, start + found)
                if not piece:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                pieces.append(piece)
                found += len(piece)
        return np.frombuffer(b"".join(pieces), dtype)


def _write(descriptor: int, content: bytes, at: int) -> None:
    rest = memoryview(content)
    while rest:
        count = os.pwrite(descriptor, rest, at)
        rest, at = rest[count:], at + count
