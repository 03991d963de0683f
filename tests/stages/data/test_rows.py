"""Token rows on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stages.data.rows import file_header, open_rows, write_rows
from stages.errors import InputError

TOKEN = st.integers(0, 2**31 - 1)
ROWS = st.lists(st.lists(st.tuples(TOKEN, st.integers(0, 1)), min_size=1, max_size=9), max_size=9)


@given(rows=ROWS)
@settings(deadline=None)
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, int]]]
) -> None:
    """Every token and flag survives, with lengths and types as promised."""
    directory = tmp_path_factory.mktemp("rows")
    pairs = [
        (np.array([t for t, _ in row], np.int32), np.array([s for _, s in row], np.uint8))
        for row in rows
    ]
    write_rows(directory / "train.safetensors", pairs)
    found = open_rows(directory, "train")
    assert len(found) == len(rows)
    assert found.lengths.tolist() == [len(row) for row in rows]
    assert found.tokens == sum(map(len, rows))
    for index, row in enumerate(rows):
        tokens, supervised = found[index]
        assert (tokens.dtype, supervised.dtype) == (np.int32, np.uint8)
        assert list(zip(tokens.tolist(), supervised.tolist(), strict=True)) == row


def test_the_file_has_the_arrays_of_the_contract(tmp_path: Path) -> None:
    """Any program with safetensors can read the rows: three arrays, by name and type."""
    one = (np.array([5, 6], np.int32), np.array([0, 1], np.uint8))
    two = (np.array([7], np.int32), np.array([0], np.uint8))
    write_rows(tmp_path / "train.safetensors", [one, two])
    arrays = load_file(tmp_path / "train.safetensors")
    assert {name: (a.dtype.name, a.tolist()) for name, a in arrays.items()} == {
        "tokens": ("int32", [5, 6, 7]),
        "supervised": ("uint8", [0, 1, 0]),
        "offsets": ("int64", [0, 2, 3]),
    }


def test_iteration_ends_with_the_last_row(tmp_path: Path) -> None:
    """A row beyond the last is an IndexError, so that `for row in rows` works."""
    pair = (np.array([5, 6], np.int32), np.array([0, 1], np.uint8))
    write_rows(tmp_path / "train.safetensors", [pair, pair])
    assert [tokens.tolist() for tokens, _ in open_rows(tmp_path, "train")] == [[5, 6], [5, 6]]


@pytest.mark.parametrize(("rows", "tokens"), [(0, 0), (1, 9), (10, 99_999), (1_000, 1_234_567)])
def test_the_header_is_that_of_safetensors(tmp_path: Path, rows: int, tokens: int) -> None:
    """A file that is streamed starts with the very bytes that safetensors writes."""
    arrays: dict[str, np.ndarray] = {
        "tokens": np.zeros(tokens, np.int32),
        "supervised": np.zeros(tokens, np.uint8),
        "offsets": np.zeros(rows + 1, np.int64),
    }
    save_file(arrays, tmp_path / "file", metadata={"format": "1"})
    written = (tmp_path / "file").read_bytes()
    header = file_header(rows, tokens)
    assert written.startswith(header)
    assert len(written) == len(header) + 5 * tokens + 8 * (rows + 1)


def test_a_row_cannot_be_overwritten(tmp_path: Path) -> None:
    """Rows are views of the file, so changing one in place is refused."""
    pair = (np.array([5, 6], np.int32), np.array([0, 1], np.uint8))
    write_rows(tmp_path / "train.safetensors", [pair])
    for part in open_rows(tmp_path, "train")[0]:
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


def save(path: Path, **changes: object) -> None:
    arrays = {
        "tokens": np.arange(4, dtype=np.int32),
        "supervised": np.ones(4, np.uint8),
        "offsets": np.array([0, 2, 4], np.int64),
    } | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    save_file(kept, path / "valid.safetensors", metadata={"format": "1"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 3, 2, 4], np.int64)}, "its offsets do not rise"),
        ({"offsets": np.array([0, 4, 4], np.int64)}, "its offsets do not rise"),
        ({"offsets": np.array([0, 3], np.int64)}, "its offsets do not run from 0 to 4"),
        ({"offsets": np.array([1, 4], np.int64)}, "its offsets do not run from 0 to 4"),
        ({"offsets": np.empty(0, np.int64)}, "its offsets do not run from 0 to 4"),
        ({"supervised": np.ones(3, np.uint8)}, "found 4 tokens, but 3 supervised flags"),
        ({"tokens": np.arange(4, dtype=np.int64)}, "found tokens as I64"),
        ({"tokens": np.zeros((2, 2), np.int32)}, "expected I32 of one dimension"),
        ({"supervised": None}, "found offsets, tokens, expected tokens, supervised, offsets"),
    ],
)
def test_damaged_rows_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """What is wrong with the file is named, instead of wrong tokens being trained."""
    save(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        open_rows(tmp_path, "valid")
    assert message in caught.value.found
    assert caught.value.where == str(tmp_path / "valid.safetensors")


def test_unreadable_files_and_newer_formats_are_refused(tmp_path: Path) -> None:
    """A missing file, a file cut short and a newer format each say so."""
    file = tmp_path / "valid.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        open_rows(tmp_path, "valid")
    save(tmp_path)
    assert len(open_rows(tmp_path, "valid")) == 2
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="cannot be read"):
        open_rows(tmp_path, "valid")
    save_file({"tokens": np.zeros(1, np.int32)}, file, metadata={"format": "2"})
    with pytest.raises(InputError, match="found row format 2, expected 1"):
        open_rows(tmp_path, "valid")
