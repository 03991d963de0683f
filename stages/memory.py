"""Memory as a person writes and reads it, and what to change where it is too little."""

from __future__ import annotations

import re

from stages.errors import SettingError

_UNITS = {"B": 1} | {
    f"{prefix}{middle}B": base**power
    for middle, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_LEAST_BYTES = 1_000_000
_LACKING = re.compile(r"malloc|bad_alloc|out of memory|outofmemory|insufficient memory", re.I)
"""What MLX 0.32 and its back ends say where an array finds no place: CPU, Metal and CUDA."""


def size_bytes(key: str, size: int | str | None) -> int | None:
    """Return a size such as `6GB`, `5.5GiB` or 6000000000 in bytes; None stays None.

    Raises SettingError for `key` where it is no size, or less than a megabyte.
    """
    if size is None:
        return None
    text = str(size)
    match = re.fullmatch(
        r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?i?B)", f"{text}B" if text.isdecimal() else text
    )
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise SettingError(key, f"found {size!r}, expected a size such as 6GB, or null for none")
    found = int(float(match[1]) * unit)
    if found < _LEAST_BYTES:
        raise SettingError(key, f"found {size!r}, which is {found:,} bytes", "write it as 6GB")
    return found


def lacks_memory(text: str) -> bool:
    """Tell whether an error's text says that there was no memory for an array."""
    return _LACKING.search(text) is not None


def shown(amount_bytes: float) -> str:
    """Return an amount of memory as a person reads it: `2.12 GiB`."""
    return f"{amount_bytes / 2**30:.2f} GiB"


def smaller_batch(batch_size: int) -> int | None:
    """Return the largest whole part of a batch that is at most half of it; None for one row."""
    return next((size for size in range(batch_size // 2, 0, -1) if batch_size % size == 0), None)


def what_to_change(batch_size: int, *, checkpointing: bool, packable: bool) -> str:
    """Name the keys that lower the memory of training, those that still can.

    `packable`: quantizing the weights would make them smaller. On a CPU, which computes in
    float32, they are unpacked.
    """
    keys = ["data.max_seq_length"]
    if batch_size > 1:
        keys.insert(0, "train.batch_size")
    found = f"lower {' or '.join(keys)}"
    if not checkpointing:
        found += ", set train.gradient_checkpointing=true"
    if packable:
        found += ", or set model.quantization=4"
    return found
