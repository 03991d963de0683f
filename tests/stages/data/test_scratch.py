"""Rows on disk while it is not yet known which split each is in."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data import scratch
from stages.data.rows import write_rows
from stages.data.scratch import Scratch
from stages.errors import EnvironmentFailure

ROW = st.tuples(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=9),
)
CHUNKS = st.lists(st.lists(ROW, max_size=4), max_size=5)


def fill(store: Scratch, rows: list[tuple[list[int], str]]) -> None:
    """Append one chunk; a token is supervised where it is odd."""
    tokens = np.array([t for row, _ in rows for t in row], np.int32)
    lengths = np.array([len(row) for row, _ in rows], np.int32)
    supervised = (tokens % 2).astype(np.uint8)
    store.append(tokens, supervised, lengths, [text.encode() for _, text in rows])


@pytest.mark.parametrize("block_bytes", [1, 7, 4 << 20])
@given(chunks=CHUNKS, data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_split_has_the_bytes_that_all_rows_at_once_would_have(
    tmp_path_factory: pytest.TempPathFactory,
    block_bytes: int,
    chunks: list[list[tuple[list[int], str]]],
    data: st.DataObject,
) -> None:
    """Any rows in any order, repeated or none, give what `write_rows` writes, and their lines."""
    directory = tmp_path_factory.mktemp("scratch")
    rows = [row for chunk in chunks for row in chunk]
    places = st.lists(st.integers(0, len(rows) - 1), max_size=12) if rows else st.just([])
    indices = data.draw(places | st.just(list(range(len(rows)))))
    with pytest.MonkeyPatch.context() as patch, Scratch(directory / "scratch") as store:
        patch.setattr(scratch, "BLOCK_BYTES", block_bytes)
        for chunk in chunks:
            fill(store, chunk)
        assert len(store) == len(rows)
        store.write_split(directory, "train", np.array(indices, np.int64))
    chosen = [np.array(rows[index][0], np.int32) for index in indices]
    expected = directory / "expected.safetensors"
    write_rows(expected, [(tokens, (tokens % 2).astype(np.uint8)) for tokens in chosen])
    assert (directory / "train.safetensors").read_bytes() == expected.read_bytes()
    lines = "".join(rows[index][1] + "\n" for index in indices)
    assert (directory / "train.jsonl").read_bytes() == lines.encode()


def test_one_row_is_read_back_and_rows_may_follow_a_split(tmp_path: Path) -> None:
    """Reading and writing take nothing away, and a row beyond the last is an IndexError."""
    with Scratch(tmp_path) as store:
        fill(store, [([5, 6], "one"), ([7], "zwei…")])
        store.write_split(tmp_path, "valid", np.array([1], np.int64))
        fill(store, [([8, 9, 10], "")])
        found = [store.read(index) for index in range(3)]
        with pytest.raises(IndexError):
            store.read(3)
    assert [tokens.tolist() for tokens, _, _ in found] == [[5, 6], [7], [8, 9, 10]]
    assert [flags.tolist() for _, flags, _ in found] == [[1, 0], [1], [0, 1, 0]]
    assert [line.decode() for _, _, line in found] == ["one", "zwei…", ""]


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    """A chunk whose lengths, tokens and lines disagree would shift every later row."""
    two = np.zeros(2, np.int32)
    with Scratch(tmp_path) as store:
        for lengths, texts in (([3], [b"x"]), ([2], []), ([1], [b"x"])):
            with pytest.raises(ValueError, match="do not fit"):
                store.append(two, two.astype(np.uint8), np.array(lengths, np.int32), texts)


def test_closing_removes_the_directory_only_where_it_was_missing(tmp_path: Path) -> None:
    """The folder of a result keeps no empty folder, and a folder of somebody else's stays."""
    (tmp_path / "theirs").mkdir()
    for name in ("ours", "theirs"):
        with Scratch(tmp_path / name) as store:
            fill(store, [([1], "x")])
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_no_name_is_left_in_the_directory(tmp_path: Path) -> None:
    """The rows take space, but leave no name behind even where the process is killed."""
    code = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from stages.data.scratch import Scratch\n"
        "store = Scratch(Path(sys.argv[1]))\n"
        "store.append(np.ones(9, np.int32), np.ones(9, np.uint8), np.array([9]), [b'line'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """Let the system refuse longer files in this process, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_refused_write_names_the_folder_and_closes_cleanly(tmp_path: Path) -> None:
    """The error is the machine's, says where and why, and closing afterwards raises nothing."""
    with Scratch(tmp_path) as store, no_file_longer_than(20):
        fill(store, [([1, 2, 3], "short")])
        with pytest.raises(EnvironmentFailure) as caught:
            fill(store, [([1, 2, 3], "short")])
    assert caught.value.where == str(tmp_path)
    assert caught.value.found == "file too large"
    assert caught.value.mend == "set outputs=<a folder on another disk>"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has")
def test_a_full_disk_is_told_with_the_space_needed_and_free(tmp_path: Path) -> None:
    """/dev/full takes no byte of the file, whose size elsewhere is the space needed."""
    row = np.array([1, 2, 3], np.int32)
    write_rows(tmp_path / "elsewhere", [(row, row.astype(np.uint8))])
    needed = (tmp_path / "elsewhere").stat().st_size
    (tmp_path / "train.safetensors").symlink_to("/dev/full")
    with Scratch(tmp_path) as store:
        fill(store, [([1, 2, 3], "line")])
        with pytest.raises(EnvironmentFailure) as caught:
            store.write_split(tmp_path, "train", np.array([0], np.int64))
    assert caught.value.where == str(tmp_path / "train.safetensors")
    assert caught.value.found.startswith(f"no space left: needed {needed} bytes, free ")
    assert caught.value.mend == "free some space, or set outputs=<a folder on another disk>"
