"""A worker that died without a word: lack of memory is told from other ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import deaths
from pipeline.deaths import cause
from pipeline.errors import Broken, OutOfMemory, Unable

METAL = """noise
libc++abi: terminating due to uncaught exception of type std::runtime_error:
[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallback)
"""


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel counts, with 3 kills so far."""
    path = tmp_path / "vmstat"
    path.write_text("pgfault 12\noom_kill 3\nallocstall 3\n")
    monkeypatch.setattr(deaths, "COUNTERS", path)
    return path


def test_killed_while_the_kernel_counts(counters: Path) -> None:
    """Only where the count has risen was it the kernel, for lack of memory."""
    before = deaths.kills_for_memory()
    assert before == 3
    other = cause("train", -signal.SIGKILL, "", before)
    assert type(other) is Unable
    assert "not by the system" in other.found
    counters.write_text("oom_kill 4\n")
    assert type(cause("train", -signal.SIGKILL, "", before)) is OutOfMemory


def test_killed_where_nobody_counts(counters: Path) -> None:
    """Without a count, as on a Mac, lack of memory is what kills."""
    counters.write_text("pgfault 12\n")
    assert deaths.kills_for_memory() is None
    counters.unlink()
    assert deaths.kills_for_memory() is None
    assert type(cause("train", -signal.SIGKILL, "", None)) is OutOfMemory


def test_last_words_decide_an_abort() -> None:
    """What MLX raises in its own thread ends the process; anything else is a bug."""
    assert type(cause("train", -signal.SIGABRT, METAL, 0)) is OutOfMemory
    other = METAL.replace("Insufficient Memory", "Caused GPU Timeout Error")
    assert type(cause("train", -signal.SIGABRT, other, 0)) is Broken
    # Such words from long before are not the last.
    assert type(cause("train", -signal.SIGABRT, METAL + "a\nb\nc\n", 0)) is Broken


def test_crash_is_a_bug() -> None:
    """A segmentation fault and a plain exit are no lack of memory."""
    for code in (-signal.SIGSEGV, 1):
        assert type(cause("train", code, "", 0)) is Broken


LIMITED = """
import resource, signal
resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
from pipeline.deaths import cause
print(type(cause("train", -signal.SIGSEGV, "", 0)).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac has no such limit")
def test_crash_under_a_limit_of_addresses_is_lack_of_memory() -> None:
    """MLX 0.32 does not look whether malloc gave something: under ulimit -v it crashes."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "OutOfMemory\n"
