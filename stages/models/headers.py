"""Safetensors headers, read and checked before anything maps or allocates the file.

Format: https://github.com/huggingface/safetensors (u64 header length, JSON header, one buffer).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import InputError

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16,
    "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4,
}  # fmt: skip

# The limit of the safetensors library itself.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors file says about one tensor."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_header(file: Path) -> dict[str, TensorHeader]:
    """Return what `file` holds, by tensor name, having checked that the buffer is exactly filled.

    Raises InputError for a truncated file, a damaged header, a name that occurs twice, and
    offsets that overlap, leave gaps or disagree with the shape.
    """
    try:
        with file.open("rb") as stream:
            total = file.stat().st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else total
            if length > min(total - 8, _MAX_HEADER_BYTES):
                raise ValueError("the file is cut short, or is no safetensors file")
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
            return _check(header, total - 8 - length)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(str(file), f"cannot be read: {reason}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        found = f"damaged safetensors file: {error}"
        raise InputError(str(file), found, "download or copy it again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _check(header: dict[str, Any], buffer_bytes: int) -> dict[str, TensorHeader]:
    tensors: dict[str, TensorHeader] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name} has a shape or offset that is no size")
        if math.prod(shape) * _BITS[entry["dtype"]] != 8 * (end - begin):
            raise ValueError(f"the size of {name} disagrees with its shape")
        tensors[name] = TensorHeader(entry["dtype"], shape, end - begin)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(f"{name} overlaps its neighbour or leaves a gap")
        position = end
    if position != buffer_bytes:
        raise ValueError(f"it holds {buffer_bytes} bytes of tensors, its header says {position}")
    return tensors
