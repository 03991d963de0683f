from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.errors import EnvironmentFailure
from stages.training.hidden_file import HiddenFile, create

GROUPS, SIZES = [[2, 0], [1]], [12, 8, 4]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "hidden"
    create(path, HiddenFile(path, GROUPS, SIZES).size_bytes)
    return path


def opened(path: Path) -> HiddenFile:
    file = HiddenFile(path, GROUPS, SIZES)
    file.open()
    return file


def test_rows_come_back_in_any_order_and_to_another_process_too(path: Path) -> None:
    """What one has written, another that has opened the same file reads."""
    one, other = opened(path), opened(path)
    rows = [np.arange(size // 4, dtype=np.uint32) + size for size in SIZES]
    assert not one.holds(0)
    one.write(0, [rows[2], rows[0]])
    assert other.holds(0)
    assert not other.holds(1)
    other.write(1, [rows[1]])
    for row in (1, 0, 2):
        np.testing.assert_array_equal(one.read(row, np.uint32), rows[row])
    assert path.stat().st_size == one.size_bytes == 2 + 12 + 8 + 4
    one.close()
    other.close()


def test_file_cut_short_is_an_error(path: Path) -> None:
    """It is never read as zeros."""
    file = opened(path)
    os.truncate(path, 10)
    with pytest.raises(EnvironmentFailure, match="input/output error"):
        file.read(1, np.uint32)
    file.close()


def test_disk_that_is_too_small_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the path, what is needed and free, and what to do; no file is left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(EnvironmentFailure) as caught:
        create(tmp_path / "hidden", 1000)
    assert str(caught.value) == (
        f"{tmp_path / 'hidden'}: no space left: needed 1,000 bytes, free 999; free some space, or "
        "set outputs=<a folder on another disk>, or train.prefix_cache_gb=null"
    )
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_leaves_the_group_unwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The byte that says that a group is there comes last."""
    file = opened(path)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(EnvironmentFailure, match="needed 8 bytes"):
            file.write(1, [np.zeros(2, np.uint32)])
    assert not file.holds(1)
    file.close()
