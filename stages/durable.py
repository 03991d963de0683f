"""Write files so that they survive a crash whole or not at all, and say what the disk refused."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import EnvironmentFailure

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "set outputs=<a folder on another disk>"
_MENDS = {
    errno.ENOSPC: f"free some space, or {_ELSEWHERE}; the same command continues",
    errno.EDQUOT: f"free some of your quota, or {_ELSEWHERE}; the same command continues",
    errno.EFBIG: f"raise the limit on file sizes (ulimit -f), or {_ELSEWHERE}",
    errno.EROFS: f"mount it writable, or {_ELSEWHERE}",
    errno.EACCES: f"make it readable and writable for you, or {_ELSEWHERE}",
    errno.EPERM: f"make it readable and writable for you, or {_ELSEWHERE}",
    errno.EIO: f"the disk may be failing: copy what you need, and {_ELSEWHERE}",
    errno.EXDEV: "keep outputs on one file system",
}
_IN_TEXT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


def disk_failure(error: Exception, path: Path, needed_bytes: int) -> EnvironmentFailure | None:
    """Say that the disk refused `path`, where that is what `error` means.

    Names the needed and the free bytes. safetensors and MLX raise errors of their own, which tell
    it in their text alone.
    """
    number = getattr(error, "errno", None) if isinstance(error, OSError) else _in_text(str(error))
    if number is None and not isinstance(error, OSError):
        return None
    found = (os.strerror(number) if number else str(error)).lower()
    if number in _FULL:
        found = "no space left"
    if needed_bytes or number in _FULL:
        found = f"{found}: needed {needed_bytes:,} bytes, {_free_text(path)}"
    where = str(getattr(error, "filename", None) or path)
    return EnvironmentFailure(where, found, _MENDS.get(number or 0, ""))


@contextmanager
def disk_reported(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Raise what the disk refuses in the block as EnvironmentFailure."""
    try:
        yield
    except Exception as error:
        if failure := disk_failure(error, path, needed_bytes):
            raise failure from error
        raise


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Raise EnvironmentFailure unless the disk of `path` has room for what will be written."""
    free = free_bytes(path)
    if free is not None and free < needed_bytes:
        found = f"no space for {what}: needed {needed_bytes:,} bytes, free {free:,} bytes"
        raise EnvironmentFailure(str(path), found, _MENDS[errno.ENOSPC])


def free_bytes(path: Path) -> int | None:
    """Return the free space where `path` lies or will lie, None where nobody can tell."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def sync_file(descriptor: int) -> None:
    """Return once the bytes of an open file are on the disk."""
    os.fsync(descriptor)
    if sys.platform == "darwin":
        # There fsync leaves them in the drive's cache.
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def sync_directory(directory: Path) -> None:
    """Return once the names in `directory` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync_file(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory, and keep names durable by themselves.
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts to a file of that name, and return once it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in place of `path`; a reader sees the old bytes or the new, never a part.

    The caller keeps other writers of `path` away: the temporary name is always the same, so that
    a killed process leaves one at most.
    """
    temporary = path.with_name(f".{path.name}.new")
    write_file(temporary, content)
    os.replace(temporary, path)  # noqa: PTH105  (os.* is what the fault tests count)
    sync_directory(path.parent)


def _in_text(text: str) -> int | None:
    for number in _IN_TEXT:
        if os.strerror(number) in text:
            return number
    return errno.EIO if text.startswith("[write] Unable to write") else None


def _free_text(path: Path) -> str:
    free = free_bytes(path)
    return "free space unknown" if free is None else f"free {free:,} bytes"
