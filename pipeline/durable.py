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

from pipeline.errors import Unable

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)
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


@contextmanager
def reported(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Translate an OSError of the block into `Unable` naming `path`, and the space if it lacks."""
    try:
        yield
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found = f"no space left: needed {needed_bytes:,} bytes, {_free(path)}"
        mend = _MENDS.get(error.errno or 0, "")
        raise Unable(str(error.filename or path), found, mend) from error


def _free(path: Path) -> str:
    for folder in (path, *path.parents):
        try:
            return f"free {shutil.disk_usage(folder).free:,} bytes"
        except OSError:
            continue
    return "free space unknown"


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


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to a file of that name, and return once it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(content)
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


def replace_link(link: Path, target: Path) -> None:
    """Point the symbolic link `link` at `target`, relative to where it lies, in one step.

    The caller keeps other writers of `link` away, as for `replace_file`.
    """
    relative = os.path.relpath(target.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(relative)
    os.replace(temporary, link)  # noqa: PTH105  (os.* is what the fault tests count)
