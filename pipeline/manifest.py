"""The manifest of a stage directory: what the stage made, of what, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Refused
from pipeline.resolved import digest
from stages.durable import sync_directory, sync_file

FORMAT = 1
NAME = "manifest.json"


class Damaged(Exception):
    """Say which file of a stage directory is not as it was committed, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One committed stage directory, as its manifest describes it."""

    stage: str
    key: str
    directory: Path
    metrics: dict[str, float]
    seconds: float
    """How long the stage took to make it."""
    created: str
    """When it was committed: ISO 8601, UTC; sorts as text."""
    ingredients: dict[str, Any]
    """What the key was made of."""
    peak_memory_bytes: int | None

    @property
    def history(self) -> Path:
        """Return where the stage wrote its metrics step by step; the file may be absent."""
        return self.directory / "metrics.jsonl"


def seal(directory: Path) -> dict[str, Any]:
    """Bring all that lies under `directory` to the disk; return its files as described.

    Raises `Refused` for anything but plain files and folders, and for a file of our own name.
    """
    described = {}
    for folder, folders, names in os.walk(directory, topdown=False, onerror=_raise):
        for path in (Path(folder, name) for name in sorted(folders + names)):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                described[path.relative_to(directory).as_posix()] = _describe(path)
            elif not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                mend = "the stage must write plain files, and copies instead of links"
                raise Refused(str(path), f"{kind}, which the store cannot keep", mend)
        sync_directory(Path(folder))
    if NAME in described:
        mend = "the stage must choose another"
        raise Refused(str(directory / NAME), "this name belongs to the store", mend)
    return described


def encode(entry: Entry, described: Mapping[str, Any]) -> bytes:
    """Return the bytes of the manifest, which vouches for itself too."""
    manifest = {
        "stage": entry.stage,
        "key": entry.key,
        "created": entry.created,
        "seconds": entry.seconds,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "metrics": entry.metrics,
        "ingredients": entry.ingredients,
        "files": described,
    }
    vouched = {"format": FORMAT, "sha256": digest(manifest), **manifest}
    return (json.dumps(vouched, indent=1) + "\n").encode()


def read(directory: Path) -> tuple[Entry, dict[str, Any]]:
    """Return the entry in `directory` and its files as described, without looking at these.

    Raises `Damaged` where the manifest is not as it was written, `Refused` for a newer format.
    """
    path = directory / NAME
    try:
        manifest = json.loads(path.read_bytes())
        number = manifest.pop("format")
        if number > FORMAT:
            found = f"written in format {number}, this version reads {FORMAT}"
            raise Refused(str(path), found, "update mlx-lora-pipeline, or set outputs=<folder>")
        if manifest.pop("sha256") != digest(manifest):
            raise Damaged(f"{path}: altered after it was written")
        described = manifest.pop("files")
        entry = Entry(directory=directory, **manifest)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged(f"{path}: missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{path}: not a whole manifest") from None
    if (entry.stage, entry.key) != (directory.parent.name, directory.name):
        raise Damaged(f"{path}: describes {entry.stage}/{entry.key}")
    return entry, described


def check(directory: Path, described: Mapping[str, Any]) -> None:
    """Raise `Damaged` unless every file is there as described, as far as a glance can tell.

    The glance is at the size; a file whose modification time has changed is read in full.
    """
    for name, expected in described.items():
        path = directory / name
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise Damaged(f"{path}: missing") from None
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path}: no plain file")
        if found.st_size != expected["size_bytes"]:
            sizes = f"{found.st_size:,} bytes instead of {expected['size_bytes']:,}"
            raise Damaged(f"{path}: {sizes}")
        if found.st_mtime_ns != expected["modified_ns"] and not is_intact(path, expected):
            raise Damaged(f"{path}: changed after it was committed")


def is_intact(path: Path, expected: Mapping[str, Any]) -> bool:
    """Tell whether the bytes of a file can be read and are the ones described."""
    try:
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected["sha256"])
    except OSError:
        return False


def _raise(error: OSError) -> None:
    raise error


def _describe(path: Path) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        sync_file(descriptor)
        found = os.fstat(descriptor)
    return {
        "size_bytes": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "sha256": sha256,
    }
