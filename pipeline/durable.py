"""What the disk refuses, as the error that ends a run; and links that are replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import Unable
from stages.durable import disk_failure


@contextmanager
def reported(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Translate an OSError of the block into `Unable` naming `path`, and the space if it lacks."""
    try:
        yield
    except OSError as error:
        failure = disk_failure(error, path, needed_bytes)
        assert failure is not None
        raise Unable(failure.where, failure.found, failure.mend) from error


def replace_link(link: Path, target: Path) -> None:
    """Point the symbolic link `link` at `target`, relative to where it lies, in one step.

    The caller keeps other writers of `link` away, as for `replace_file`.
    """
    relative = os.path.relpath(target.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(relative)
    os.replace(temporary, link)  # noqa: PTH105  (os.* is what the fault tests count)
