"""SHA-256 of large files that seldom change, so that gigabytes of weights are read only once."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

_LARGE_BYTES = 8 << 20
# A file written this recently could change again without its time stamp telling.
_SETTLED_SECONDS = 2.0


def sha256(file: Path) -> str:
    """Return the digest of the bytes of `file`, a remembered one for a large unchanged file.

    It is remembered in the user's cache under path, inode, size and time of change. Raises OSError
    where `file` cannot be read.
    """
    before = file.stat()
    if before.st_size < _LARGE_BYTES:
        return _read(file)
    identity = (file.resolve(), before.st_ino, before.st_size, before.st_mtime_ns)
    name = hashlib.sha256("\0".join(map(str, identity)).encode()).hexdigest()
    memory = _cache() / "digests" / name
    try:
        return memory.read_text(encoding="ascii")
    except OSError:
        found = _read(file)
    after = file.stat()
    unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if unchanged and time.time() - after.st_mtime > _SETTLED_SECONDS:
        _remember(memory, found)
    return found


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remember(memory: Path, digest: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(digest)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(memory)
    except OSError:
        # A cache that cannot be written costs time, never a result.
        return


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx-lora-pipeline"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx-lora-pipeline"
