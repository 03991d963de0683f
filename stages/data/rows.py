"""Token rows on disk: one safetensors file per split, read lazily.

`tokens` int32 (N,), all rows end to end; `supervised` uint8 (N,), 1 where the token is a training
target; `offsets` int64 (rows + 1,), where each row starts and, last, N. Nothing predicts the first
token of a row, so its `supervised` is always 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.errors import InputError

FORMAT = "1"
_TYPES: dict[str, tuple[str, Any]] = {
    "tokens": ("I32", np.int32),
    "supervised": ("U8", np.uint8),
    "offsets": ("I64", np.int64),
}

Tokens = NDArray[np.int32]
Supervised = NDArray[np.uint8]


def write_rows(path: Path, rows: Iterable[tuple[Tokens, Supervised]]) -> None:
    """Write the rows, each (tokens, supervised) of one length, as one file."""
    pairs = list(rows)
    lengths = [len(tokens) for tokens, _ in pairs]
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate([np.empty(0, np.int32), *(tokens for tokens, _ in pairs)]),
        "supervised": np.concatenate([np.empty(0, np.uint8), *(mask for _, mask in pairs)]),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
    }
    typed = {name: arrays[name].astype(kind) for name, (_, kind) in _TYPES.items()}
    save_file(typed, path, metadata={"format": FORMAT})


class Rows:
    """The rows of one split; only the offsets are in memory."""

    def __init__(self, path: Path) -> None:
        """Open and check `path`; raises InputError where it is missing, damaged or newer."""
        self._file = _open(path)
        offsets: NDArray[np.int64] = self._file.get_tensor("offsets")
        size = _checked_size(path, self._file, offsets)
        self._offsets = offsets.tolist()
        self._slices = {name: self._file.get_slice(name) for name in ("tokens", "supervised")}
        self.lengths: NDArray[np.int64] = np.diff(offsets)
        """Tokens in each row, int64 (rows,)."""
        self.tokens: int = size
        """Tokens in all rows."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tokens, Supervised]:
        """Return (tokens int32, supervised uint8) of one row, both (length,)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._slices["tokens"][start:end], self._slices["supervised"][start:end]


def open_rows(directory: Path, split: str) -> Rows:
    """Open the rows of `split` (train, valid or test) in a prepared directory."""
    return Rows(directory / f"{split}.safetensors")


def _open(path: Path) -> Any:
    try:
        file: Any = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    found = (file.metadata() or {}).get("format")
    if found != FORMAT:
        raise _damaged(path, f"found row format {found}, expected {FORMAT}")
    if set(file.keys()) != set(_TYPES):
        raise _damaged(
            path, f"found {', '.join(sorted(file.keys()))}, expected {', '.join(_TYPES)}"
        )
    for name, (kind, _) in _TYPES.items():
        there = file.get_slice(name)
        if there.get_dtype() != kind or len(there.get_shape()) != 1:
            found = f"{there.get_dtype()} {there.get_shape()}"
            raise _damaged(path, f"found {name} as {found}, expected {kind} of one dimension")
    return file


def _checked_size(path: Path, file: Any, offsets: NDArray[np.int64]) -> int:
    sizes = [file.get_slice(name).get_shape()[0] for name in ("tokens", "supervised")]
    if sizes[0] != sizes[1]:
        raise _damaged(path, f"found {sizes[0]} tokens, but {sizes[1]} supervised flags")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != sizes[0]:
        raise _damaged(path, f"its offsets do not run from 0 to {sizes[0]}")
    if (np.diff(offsets) <= 0).any():
        raise _damaged(path, "its offsets do not rise")
    return int(sizes[0])


def _damaged(path: Path, found: str) -> InputError:
    return InputError(str(path), found, "prepare the data again")
