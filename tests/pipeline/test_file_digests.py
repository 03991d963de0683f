"""Digests of large files are remembered, and forgotten when the file changes."""

import hashlib
import os
import time

import pytest

from pipeline import file_digests

LARGE = b"x" * file_digests._LARGE_BYTES


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "digests"


def test_large_settled_file_is_read_once(tmp_path, cache):
    """The second digest comes from the cache, as a forged memory shows."""
    file = tmp_path / "weights"
    file.write_bytes(LARGE)
    hour_ago = time.time() - 3600
    os.utime(file, (hour_ago, hour_ago))
    assert file_digests.sha256(file) == hashlib.sha256(LARGE).hexdigest()
    (memory,) = cache.iterdir()
    memory.write_text("forged")
    assert file_digests.sha256(file) == "forged"
    file.write_bytes(LARGE[:-1] + b"y")
    assert file_digests.sha256(file) == hashlib.sha256(LARGE[:-1] + b"y").hexdigest()


def test_fresh_and_small_files_are_not_remembered(tmp_path, cache):
    """A file that may still change within its time stamp, or costs nothing, is read each time."""
    for name, data in (("fresh", LARGE), ("small", b"abc")):
        (tmp_path / name).write_bytes(data)
        assert file_digests.sha256(tmp_path / name) == hashlib.sha256(data).hexdigest()
    assert not cache.exists()


def test_unwritable_cache_costs_nothing_but_time(tmp_path, cache):
    """Where the cache cannot be made the digest is right all the same."""
    cache.parent.write_text("a file in the way")
    file = tmp_path / "weights"
    file.write_bytes(LARGE)
    os.utime(file, (1, 1))
    assert file_digests.sha256(file) == hashlib.sha256(LARGE).hexdigest()
