"""Token rows on disk: one safetensors file per split, mapped into memory.

`tokens` int32 (N,), all rows end to end; `supervised` uint8 (N,), 1 where the token is a training
target; `offsets` int64 (rows + 1,), where each row starts and, last, N. Nothing predicts the first
token of a row, so its `supervised` is always 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.errors import InputError

FORMAT = "1"
_TYPES: dict[str, tuple[str, str]] = {
    "tokens": ("I32", "<i4"),
    "supervised": ("U8", "|u1"),
    "offsets": ("I64", "<i8"),
}
"""Name of each array -> its type as safetensors and as numpy call it."""

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


def file_header(rows: int, tokens: int) -> bytes:
    """Return what safetensors writes before the arrays: offsets, tokens and supervised follow."""
    described: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    start = 0
    for name, length in (("offsets", rows + 1), ("tokens", tokens), ("supervised", tokens)):
        kind, dtype = _TYPES[name]
        end = start + length * np.dtype(dtype).itemsize
        described[name] = {"dtype": kind, "shape": [length], "data_offsets": [start, end]}
        start = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Rows:
    """The rows of one split; only their lengths are held, the file's pages come and go."""

    def __init__(self, path: Path) -> None:
        """Open and check `path`; raises InputError where it is missing, damaged or newer."""
        arrays = _mapped(path)
        self._tokens, self._supervised = arrays["tokens"], arrays["supervised"]
        self._offsets: NDArray[np.int64] = arrays["offsets"]
        _check(path, self._offsets, len(self._tokens), len(self._supervised))
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)
        """Tokens in each row, int64 (rows,)."""
        self.tokens: int = len(self._tokens)
        """Tokens in all rows."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tokens, Supervised]:
        """Return (tokens int32, supervised uint8) of one row, both (length,) and read-only."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._tokens[start:end], self._supervised[start:end]


def open_rows(directory: Path, split: str) -> Rows:
    """Open the rows of `split` (train, valid or test) in a prepared directory."""
    return Rows(directory / f"{split}.safetensors")


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a checked file as views of the mapped file.

    Slicing such a view costs a thirteenth of a slice by safetensors, and copies nothing.
    """
    try:
        file: Any = safe_open(path, framework="numpy")
        # The view of a plain array is sliced twice as fast as that of a memmap.
        content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    shapes = _checked_shapes(path, file)
    sizes = {name: shapes[name] * np.dtype(kind).itemsize for name, (_, kind) in _TYPES.items()}
    arrays: dict[str, NDArray[Any]] = {}
    # safetensors has checked that the arrays fill the file to its end, without a gap.
    end = len(content)
    for name in reversed(file.offset_keys()):
        start = end - sizes[name]
        arrays[name] = content[start:end].view(_TYPES[name][1])
        end = start
    return arrays


def _checked_shapes(path: Path, file: Any) -> dict[str, int]:
    found = (file.metadata() or {}).get("format")
    if found != FORMAT:
        raise _damaged(path, f"found row format {found}, expected {FORMAT}")
    if set(file.keys()) != set(_TYPES):
        raise _damaged(
            path, f"found {', '.join(sorted(file.keys()))}, expected {', '.join(_TYPES)}"
        )
    shapes: dict[str, int] = {}
    for name, (kind, _) in _TYPES.items():
        there = file.get_slice(name)
        if there.get_dtype() != kind or len(there.get_shape()) != 1:
            found = f"{there.get_dtype()} {there.get_shape()}"
            raise _damaged(path, f"found {name} as {found}, expected {kind} of one dimension")
        shapes[name] = there.get_shape()[0]
    return shapes


def _check(path: Path, offsets: NDArray[np.int64], tokens: int, flags: int) -> None:
    if tokens != flags:
        raise _damaged(path, f"found {tokens} tokens, but {flags} supervised flags")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != tokens:
        raise _damaged(path, f"its offsets do not run from 0 to {tokens}")
    if (np.diff(offsets) <= 0).any():
        raise _damaged(path, "its offsets do not rise")


def _damaged(path: Path, found: str) -> InputError:
    return InputError(str(path), found, "prepare the data again")
