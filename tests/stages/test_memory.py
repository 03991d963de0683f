"""Sizes of memory as they are written, and what lowers the memory of training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import SettingError
from stages.memory import lacks_memory, size_bytes, smaller_batch, what_to_change


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("6GB", 6_000_000_000),
        ("6 GB", 6_000_000_000),
        ("5.5GiB", 5_905_580_032),
        ("1MB", 1_000_000),
        ("512MiB", 536_870_912),
        ("2000000KB", 2_000_000_000),
        ("1TiB", 1_099_511_627_776),
        ("8000000000B", 8_000_000_000),
        (8_000_000_000, 8_000_000_000),
        ("8000000000", 8_000_000_000),
        (None, None),
    ],
)
def test_size_is_read(written: int | str | None, expected: int | None) -> None:
    """Decimal and binary units, with and without a fraction; a bare number is bytes."""
    assert size_bytes("k", written) == expected


@pytest.mark.parametrize(
    "written", ["", "GB", "6", 6, 0, -8_000_000_000, "6gb", "6G", "6Gb", "-6GB", "6,5GB", "1e9",
                "6GB ", "six", "999KB", "٦GB", "²", "6 iB", "60iB", "nan GB"]
)  # fmt: skip
def test_nonsense_is_refused(written: int | str) -> None:
    """What is no size, or less than any training takes, is refused by its key."""
    with pytest.raises(SettingError, match=r"^train\.memory_limit: found .*6GB"):
        size_bytes("train.memory_limit", written)


@given(st.integers(min_value=2, max_value=4096))
def test_smaller_batches_are_whole_parts(rows: int) -> None:
    """Halving ends at one row, and every size on the way divides the first: no row is left."""
    size: int | None = rows
    seen = [rows]
    while (size := smaller_batch(seen[-1])) is not None:
        assert rows % size == 0
        assert size <= seen[-1] / 2
        seen.append(size)
    assert seen[-1] == 1


def test_even_batches_are_halved() -> None:
    """Half a batch where it has one; an odd one's largest whole part."""
    assert [smaller_batch(rows) for rows in (8, 6, 9, 7, 1)] == [4, 3, 3, 1, None]


@pytest.mark.parametrize(
    "text",
    [
        "[malloc] Unable to allocate 25600000000 bytes.",
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "std::bad_alloc",
    ],
)
def test_words_of_mlx_are_known(text: str) -> None:
    """What MLX and its back ends say is told from other errors."""
    assert lacks_memory(text)
    assert not lacks_memory("[matmul] Last dimension of first input does not match")


def test_only_what_can_still_be_changed_is_named() -> None:
    """One row at a time cannot be fewer, checkpointing not be set twice."""
    every = what_to_change(4, checkpointing=False, packable=True)
    keys = ("train.batch_size", "data.max_seq_length", "train.gradient_checkpointing=true",
            "model.quantization")  # fmt: skip
    assert all(key in every for key in keys)
    least = what_to_change(1, checkpointing=True, packable=False)
    assert [key for key in keys if key in least] == ["data.max_seq_length"]
