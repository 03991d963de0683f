"""The content-addressed store: a stage directory is committed whole, or it is absent.

store/<stage>/<key>/    manifest.json and the files; never changed once committed
store/.partial/         stage directories in the making, and damaged ones set aside; never read
store/.locks/           one lock per stage and key
store/.checkpoints/     unfinished work of a stage and key, gone once that is committed
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.durable import reported
from pipeline.errors import Refused
from pipeline.locks import hold
from pipeline.manifest import Damaged, Entry
from pipeline.resolved import redact
from stages.durable import sync_directory, write_file

__all__ = ["Entry", "Store"]

_log = logging.getLogger(__name__)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Store:
    """The store under `root`. What the disk refuses is raised as `Unable`, naming the path."""

    root: Path

    def find(self, stage: str, key: str) -> Entry | None:
        """Return what is committed under `key`, None if nothing is.

        A damaged entry counts as absent: it is logged here, and set aside once it is made again.
        Raises `Refused` for a manifest of a newer format. Writes nothing.
        """
        try:
            return self._read(stage, key)
        except Damaged as damage:
            _log.warning("damaged, so it is made again: %s", damage)
            return None

    def newest(self, stage: str) -> Iterator[Entry]:
        """Yield every entry of `stage`, newest first, by manifest alone."""
        directory = self.root / stage
        entries = []
        with reported(directory):
            for path in directory.iterdir() if directory.is_dir() else ():
                with contextlib.suppress(Damaged, Refused):
                    entries.append(manifest.read(path)[0])
        yield from sorted(entries, key=lambda entry: entry.created, reverse=True)

    def lock(
        self,
        stage: str,
        key: str,
        on_wait: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[None]:
        """Hold the right to make `key`; wait for whoever has it, as `locks.hold` does."""
        path = self.root / ".locks" / f"{stage}-{key}.lock"
        return hold(path, wait=True, on_wait=on_wait, stop=stop)

    def stage_directory(self, stage: str, key: str) -> Path:
        """Return a new empty directory to make `key` in; the caller holds its lock.

        What earlier holders of the lock left behind when they died is removed.
        """
        partial = self.root / ".partial"
        staging = partial / _unique(f"{stage}-{key}")
        with reported(staging):
            partial.mkdir(parents=True, exist_ok=True)
            for left in partial.iterdir():
                if left.name.startswith(f"{stage}-{key}-"):
                    self.discard(left)
            staging.mkdir()
        return staging

    def checkpoints(self, stage: str, key: str) -> Path:
        """Return where the unfinished work on `key` lies; the caller holds its lock."""
        return self.root / ".checkpoints" / f"{stage}-{key}"

    def discard(self, staging: Path) -> None:
        """Remove what will not be committed or gone on from, as far as the disk lets it."""
        shutil.rmtree(staging, ignore_errors=True)

    def commit(
        self,
        staging: Path,
        stage: str,
        key: str,
        *,
        ingredients: Mapping[str, Any],
        metrics: Mapping[str, float],
        seconds: float,
        peak_memory_bytes: int | None = None,
    ) -> Entry:
        """Make the files in `staging` the entry of `key`, durably and in one step.

        Where another process was first, its entry is returned and `staging` is removed. After
        `Unable`, `staging` is as the stage left it, or the entry is there whole. Secrets in
        `ingredients` are redacted. Raises `Refused` for links in `staging`.
        """
        final = self.root / stage / key
        entry = Entry(
            stage=stage,
            key=key,
            directory=final,
            metrics=dict(metrics),
            seconds=seconds,
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            ingredients=redact(ingredients),
            peak_memory_bytes=peak_memory_bytes,
        )
        note = staging / manifest.NAME
        with reported(staging, _size_bytes(staging)):
            described = manifest.seal(staging)
            try:
                write_file(note, manifest.encode(entry, described))
                sync_directory(staging)
                final.parent.mkdir(parents=True, exist_ok=True)
                sync_directory(self.root)
                committed = self._publish(staging, entry)
            finally:
                # Still there only if that failed; the next attempt must find what the stage left.
                with contextlib.suppress(OSError):
                    note.unlink(missing_ok=True)
            sync_directory(final.parent)
        return committed

    def verify(self, entry: Entry) -> list[str]:
        """Return the names of the files whose bytes are not the committed ones; reads them all."""
        with reported(entry.directory):
            try:
                described = manifest.read(entry.directory)[1]
            except Damaged:
                return [manifest.NAME]
            directory = entry.directory
            return [
                n for n, file in described.items() if not manifest.is_intact(directory / n, file)
            ]

    def _read(self, stage: str, key: str) -> Entry | None:
        directory = self.root / stage / key
        with reported(directory):
            if not os.path.lexists(directory):
                return None
            entry, described = manifest.read(directory)
            manifest.check(directory, described)
        return entry

    def _publish(self, staging: Path, entry: Entry) -> Entry:
        """Rename `staging` to its final name, unless a whole entry is there already."""
        while True:
            try:
                os.rename(staging, entry.directory)  # noqa: PTH104  (what the fault tests count)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return entry
            try:
                first = self._read(entry.stage, entry.key)
            except Damaged:
                self._set_aside(entry)
            else:
                if first is not None:
                    self.discard(staging)
                    return first

    def _set_aside(self, entry: Entry) -> None:
        aside = self.root / ".partial" / _unique(f"damaged-{entry.stage}-{entry.key}")
        aside.parent.mkdir(exist_ok=True)
        # Another process may have been faster.
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry.directory, aside)  # noqa: PTH104  (what the fault tests count)
            _log.warning("the damaged %s lies in %s now", entry.directory, aside)


def _unique(prefix: str) -> str:
    return f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"


def _size_bytes(directory: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return 0
