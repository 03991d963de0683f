"""Checkpoints of a training run on disk: written whole or not at all, read only if undamaged.

<directory>/step-<number>/   tensors.safetensors, course.json, metrics.jsonl, and manifest.json with
                             the size and SHA-256 of each, written last
<directory>/.partial-…       one in the making, or on its way out; never read
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from stages.durable import sync_directory, write_file

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS, COURSE, ROWS = "tensors.safetensors", "course.json", "metrics.jsonl"
_NAME = re.compile(r"step-(\d{8,})")
_KINDS = {"float32": "F32", "float16": "F16", "float64": "F64", "bool": "BOOL"} | {
    f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}"
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
"""safetensors' names of numpy's types."""
_HARMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


class Damaged(Exception):
    """Say which file of a checkpoint is not as it was written, and how."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tree of arrays, numbers and texts as it was at one moment, and the rows told by then."""

    step: int
    course: Any
    """The tree, where each array is `{"tensor": name, "axes": order}`."""
    tensors: Mapping[str, NDArray[Any]]
    rows: bytes

    @property
    def size_bytes(self) -> int:
        """Return about the space that it takes on the disk."""
        tensors = sum(array.nbytes for array in self.tensors.values())
        return tensors + len(self.rows) + len(json.dumps(self.course)) + (64 << 10)


def take(step: int, tree: Any, rows: bytes) -> Snapshot:
    """Copy the arrays of `tree`, each once however often it is there, in the order they lie in.

    The order in memory decides how MLX multiplies, and so the last bit of what follows.
    """
    tensors: dict[str, NDArray[Any]] = {}
    seen: dict[int, dict[str, Any]] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: visit(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [visit(value) for value in node]
        if not isinstance(node, mx.array):
            return node
        if id(node) not in seen:
            array = np.array(node)
            axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
            name = str(len(tensors))
            tensors[name] = np.array(array.transpose(axes), order="C")
            seen[id(node)] = {"tensor": name, "axes": axes}
        return seen[id(node)]

    return Snapshot(step, visit(tree), tensors, rows)


def forecast_bytes(tree: Any) -> int:
    """Return the most space that the arrays of `tree` can take, each wherever it is there."""
    if isinstance(tree, dict):
        return sum(map(forecast_bytes, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(forecast_bytes, tree))
    return tree.nbytes if isinstance(tree, mx.array) else 0


def write(directory: Path, snapshot: Snapshot) -> str:
    """Write the checkpoint of this step, in the place of an older one; return its name."""
    name = f"step-{snapshot.step:08d}"
    directory.mkdir(parents=True, exist_ok=True)
    staging = _partial(directory)
    contents: dict[str, Sequence[bytes | memoryview]] = {
        TENSORS: _encode(snapshot.tensors),
        COURSE: [json.dumps(snapshot.course).encode()],
        ROWS: [snapshot.rows],
    }
    try:
        os.mkdir(staging)  # noqa: PTH102  (os.* is what the fault tests count)
        for file, parts in contents.items():
            write_file(staging / file, *parts)
        files = {file: _describe(parts) for file, parts in contents.items()}
        write_file(staging / MANIFEST, _manifest(snapshot.step, files))
        sync_directory(staging)
        if (directory / name).exists():
            remove(directory, [name])
        os.rename(staging, directory / name)  # noqa: PTH104  (as above)
        sync_directory(directory)
        sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return name


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in `directory`, newest first, damaged ones too."""
    found = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return sorted(filter(_NAME.fullmatch, found), key=step_of, reverse=True)


def step_of(name: str) -> int:
    """Return the step after which a checkpoint was taken."""
    return int(name.rpartition("-")[2])


def read(path: Path) -> tuple[Any, bytes]:
    """Return the tree and the rows of a checkpoint.

    Raises Damaged naming the file at fault, OSError for one that cannot be read now.
    """
    files = _read_manifest(path)
    for file, expected in files.items():
        _check(path / file, expected)
    course = json.loads((path / COURSE).read_bytes())
    tensors = cast("dict[str, mx.array]", mx.load(str(path / TENSORS)))
    arrays: dict[str, mx.array] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, list):
            return [visit(value) for value in node]
        if not isinstance(node, dict):
            return node
        if node.keys() != {"tensor", "axes"}:
            return {name: visit(value) for name, value in node.items()}
        name, axes = node["tensor"], node["axes"]
        if name not in arrays:
            arrays[name] = tensors[name].transpose(*np.argsort(axes).tolist())
        return arrays[name]

    tree = visit(course)
    # The file may go while the run goes on.
    mx.eval(arrays)
    return tree, (path / ROWS).read_bytes()


def remove(directory: Path, others: Sequence[str]) -> None:
    """Remove checkpoints; one that is half removed has no name of a checkpoint any more."""
    for name in others:
        leaving = _partial(directory)
        os.rename(directory / name, leaving)  # noqa: PTH104  (os.* is what the fault tests count)
        shutil.rmtree(leaving, ignore_errors=True)


def keep_only(directory: Path, kept: Sequence[str]) -> None:
    """Remove all checkpoints but those, and what died processes left."""
    remove(directory, [name for name in names(directory) if name not in kept])
    for left in directory.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _partial(directory: Path) -> Path:
    return directory / f".partial-{os.getpid()}-{secrets.token_hex(4)}"


def _encode(tensors: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    """Return the parts of a safetensors file: github.com/huggingface/safetensors, "Format"."""
    header: dict[str, Any] = {}
    place = 0
    for name, array in tensors.items():
        offsets = [place, place + array.nbytes]
        shape = list(array.shape)
        header[name] = {"dtype": _KINDS[array.dtype.name], "shape": shape, "data_offsets": offsets}
        place += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bodies = [array.reshape(-1).view(np.uint8).data for array in tensors.values()]
    return [len(text).to_bytes(8, "little"), text, *bodies]


def _describe(parts: Sequence[bytes | memoryview]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return {"size_bytes": size, "sha256": digest.hexdigest()}


def _manifest(step: int, files: Mapping[str, Any]) -> bytes:
    vouched = {"format": FORMAT, "step": step, "files": files}
    return (json.dumps({**vouched, "sha256": _digest(vouched)}, indent=1) + "\n").encode()


def _digest(vouched: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(vouched, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        whole = manifest.pop("sha256") == _digest(manifest)
        files: dict[str, Any] = manifest["files"]
        same = (manifest["format"], manifest["step"]) == (FORMAT, step_of(path.name))
    except OSError as error:
        raise _unreadable(MANIFEST, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{MANIFEST}: not a whole manifest") from None
    if not whole or not same or files.keys() != {TENSORS, COURSE, ROWS}:
        raise Damaged(f"{MANIFEST}: altered after it was written")
    return files


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["size_bytes"]:
            raise Damaged(f"{path.name}: {size:,} bytes instead of {expected['size_bytes']:,}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path.name, error) from None
    if digest != expected["sha256"]:
        raise Damaged(f"{path.name}: changed after it was written")


def _unreadable(file: str, error: OSError) -> Exception:
    """Return `error` itself where the file may well be whole, and just cannot be read now."""
    if error.errno not in _HARMED:
        return error
    gone = isinstance(error, FileNotFoundError)
    return Damaged(f"{file}: {'missing' if gone else (error.strerror or '').lower()}")
