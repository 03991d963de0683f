"""Rows on disk in the order in which they arrived, until it is known which split each is in."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.rows import Supervised, Tokens, file_header
from stages.errors import EnvironmentFailure

BLOCK_BYTES = 4 << 20
"""What is copied at once."""
_RUNS = 1 << 16
"""Runs of neighbouring rows that are listed at once."""

Indices = NDArray[np.int64]


class Scratch:
    """Rows as they arrived: 16 bytes of memory each, the rest in files without a name.

    Such a file is gone with the process, however that ends.
    """

    def __init__(self, directory: Path) -> None:
        """Make three files in `directory`, which is made where missing, and then also removed.

        This, `append` and `write_split` raise EnvironmentFailure where the disk takes no more.
        """
        self._directory = directory
        self._token_ends, self._text_ends = array("q", [0]), array("q", [0])
        self._own_directory = not directory.exists()
        with reported(directory, 0):
            directory.mkdir(parents=True, exist_ok=True)
            # Unbuffered: nothing is left to be written when a full disk ends the stage.
            self._tokens, self._supervised, self._texts = self._files = tuple(
                tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (see close)
                for _ in range(3)
            )

    def __len__(self) -> int:
        return len(self._token_ends) - 1

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back."""
        for file in self._files:
            file.close()
        if self._own_directory:
            with suppress(OSError):
                self._directory.rmdir()

    def append(
        self,
        tokens: Tokens,
        supervised: Supervised,
        lengths: NDArray[np.int32],
        texts: Sequence[bytes],
    ) -> None:
        """Add rows: tokens and flags (N,) of all of them, lengths (rows,), each row's line."""
        if not len(tokens) == len(supervised) == lengths.sum() or len(lengths) != len(texts):
            found = (
                f"{len(tokens)}, {len(supervised)}, {lengths.sum()}; {len(lengths)}, {len(texts)}"
            )
            raise ValueError(f"the parts of the rows do not fit each other: {found}")
        if not texts:
            return
        lines = b"\n".join([*texts, b""])
        typed = (tokens.astype("<i4", copy=False), supervised.astype("|u1", copy=False))
        needed = len(lines) + sum(part.nbytes for part in typed)
        with reported(self._directory, needed):
            _write(self._tokens, typed[0].tobytes())
            _write(self._supervised, typed[1].tobytes())
            _write(self._texts, lines)
        _extend(self._token_ends, lengths)
        _extend(self._text_ends, np.fromiter(map(len, texts), np.int64, len(texts)) + 1)

    def read(self, index: int) -> tuple[Tokens, Supervised, bytes]:
        """Return (tokens, supervised, line) of one row."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._token_ends[index : index + 2]
        text_start, text_end = self._text_ends[index : index + 2]
        tokens = b"".join(_pieces(self._tokens, [(4 * start, 4 * end)]))
        supervised = b"".join(_pieces(self._supervised, [(start, end)]))
        line = b"".join(_pieces(self._texts, [(text_start, text_end - 1)]))
        return np.frombuffer(tokens, "<i4"), np.frombuffer(supervised, "|u1"), line

    def write_split(self, out: Path, split: str, indices: Indices) -> None:
        """Write `{split}.safetensors` and `{split}.jsonl` with the rows `indices`, in that order.

        A row may occur more than once. The bytes are those of `stages.data.rows.write_rows`.
        """
        firsts, lasts = _runs(indices)
        token_ends = np.frombuffer(self._token_ends, np.int64)
        text_ends = np.frombuffer(self._text_ends, np.int64)
        lengths = token_ends[indices + 1] - token_ends[indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        starts, ends = token_ends[firsts], token_ends[lasts + 1]
        header = file_header(len(indices), int(offsets[-1]))
        path = out / f"{split}.safetensors"
        with (
            reported(path, len(header) + offsets.nbytes + 5 * int(offsets[-1])),
            path.open("wb", buffering=0) as file,
        ):
            _write(file, header)
            _write(file, offsets.astype("<i8", copy=False).tobytes())
            _copy(self._tokens, file, 4 * starts, 4 * ends)
            _copy(self._supervised, file, starts, ends)
        path = out / f"{split}.jsonl"
        starts, ends = text_ends[firsts], text_ends[lasts + 1]
        with reported(path, int((ends - starts).sum())), path.open("wb", buffering=0) as file:
            _copy(self._texts, file, starts, ends)


def _extend(ends: array[int], lengths: NDArray[np.integer]) -> None:
    ends.frombytes((np.cumsum(lengths, dtype=np.int64) + ends[-1]).tobytes())


def _runs(indices: Indices) -> tuple[Indices, Indices]:
    """Return the first and last index of each run of indices that follow one another."""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    if len(indices) == 0:
        return indices, indices
    return indices[np.r_[0, breaks + 1]], indices[np.r_[breaks, len(indices) - 1]]


def _copy(source: FileIO, target: FileIO, starts: Indices, ends: Indices) -> None:
    """Append the bytes from each start to its end, a block at a time."""
    waiting: list[bytes] = []
    size = 0
    for at in range(0, len(starts), _RUNS):
        listed = slice(at, at + _RUNS)
        runs = zip(starts[listed].tolist(), ends[listed].tolist(), strict=True)
        for piece in _pieces(source, runs):
            waiting.append(piece)
            size += len(piece)
            if size >= BLOCK_BYTES:
                _write(target, b"".join(waiting))
                waiting.clear()
                size = 0
    _write(target, b"".join(waiting))


def _pieces(source: FileIO, runs: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    descriptor = source.fileno()
    for start, end in runs:
        while start < end:
            # A mapping would be no faster, and would count as memory of this process.
            piece = os.pread(descriptor, min(end - start, BLOCK_BYTES), start)
            if not piece:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            yield piece
            start += len(piece)


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def reported(path: Path, needed_bytes: int, instead: str = "") -> Iterator[None]:
    """Raise an OSError of the block as EnvironmentFailure, with the space that it needed.

    `instead` is what else mends it: `, or …`.
    """
    try:
        yield
    except OSError as error:
        found, mend = (
            (error.strerror or str(error)).lower(),
            f"set outputs=<a folder on another disk>{instead}",
        )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path if path.is_dir() else path.parent).free
            found = f"no space left: needed {needed_bytes:,} bytes, free {free:,}"
            mend = f"free some space, or {mend}"
        raise EnvironmentFailure(str(path), found, mend) from error
