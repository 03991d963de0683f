"""A lock is held by one, says by whom, and dies with its holder."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import locks
from pipeline.errors import Interrupted, Unable
from pipeline.locks import Held, hold, holder

ROOT = Path(__file__).parents[2]
HOLD = """
import subprocess, sys
from pathlib import Path
from pipeline.locks import hold
with hold(Path(sys.argv[1]), wait=False):
    if "child" in sys.argv:
        command = [sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()"]
        subprocess.Popen(command, close_fds=False)
    else:
        print("up", flush=True)
    input()
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a script in another process, and go on when it has printed its first line."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.readline().strip()
        assert said
        try:
            yield running, said
        finally:
            running.kill()


def test_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    """Without waiting, a lock that another process holds is `Held`, naming pid and host."""
    path = tmp_path / "a.lock"
    with (
        process(HOLD, path) as (other, _),
        pytest.raises(Held, match=rf"^process {other.pid} on \S+, since \d\d:\d\d:\d\d$"),
        hold(path, wait=False),
    ):
        pass


def test_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """After kill -9 of the holder the lock is free at once, and the file may stay."""
    path = tmp_path / "a.lock"
    with process(HOLD, path) as (other, _):
        other.send_signal(signal.SIGKILL)
        other.wait()
        with hold(path, wait=False):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_programs_started_by_the_holder_inherit_no_lock(tmp_path: Path) -> None:
    """A child that outlives its killed parent does not keep the parent's lock."""
    path = tmp_path / "a.lock"
    with process(HOLD, path, "child") as (other, child):
        other.send_signal(signal.SIGKILL)
        other.wait()
        with hold(path, wait=False):
            os.kill(int(child), 0)  # raises if the child were gone
        os.kill(int(child), signal.SIGKILL)


def test_waiting_ends_when_the_holder_ends(tmp_path: Path) -> None:
    """Waiting says once who holds the lock, and gets it when that process is gone."""
    path = tmp_path / "a.lock"
    said = []
    with process(HOLD, path) as (other, _):

        def on_wait(description: str) -> None:
            said.append(description)
            other.kill()

        with hold(path, wait=True, on_wait=on_wait):
            assert holder(path) is not None
    assert len(said) == 1
    assert str(other.pid) in said[0]


def test_waiting_can_be_stopped(tmp_path: Path) -> None:
    """A stop request ends the waiting as Ctrl-C ends a run: exit code 130."""
    path = tmp_path / "a.lock"
    with (
        process(HOLD, path),
        pytest.raises(Interrupted) as stopped,
        hold(path, wait=True, stop=lambda: True),
    ):
        pass
    assert stopped.value.exit_code == 130


def test_lock_is_free_after_the_block(tmp_path: Path) -> None:
    """The lock can be taken again after the block, also where the block raised."""
    path = tmp_path / "deep" / "a.lock"
    with pytest.raises(KeyError), hold(path, wait=False):
        raise KeyError
    with hold(path, wait=False):
        assert path.exists()
    assert path.exists()


def test_holder_looks_without_touching(tmp_path: Path) -> None:
    """`holder` is None for a free or an absent lock, names the holder of a taken one, and creates
    nothing."""
    path = tmp_path / "a.lock"
    assert holder(path) is None
    assert not path.exists()
    with hold(path, wait=False):
        described = holder(path)
        assert described is not None
        assert f"process {os.getpid()} " in described
    assert holder(path) is None


def test_being_looked_at_does_not_fail_a_run(tmp_path: Path, monkeypatch) -> None:
    """A lock that is only probed for a moment counts as free."""
    path = tmp_path / "a.lock"
    path.touch()
    probe = os.open(path, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda _: fcntl.flock(probe, fcntl.LOCK_UN))
    with hold(path, wait=False):
        pass
    os.close(probe)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_unsigned_lock_is_held_all_the_same(tmp_path: Path, content: bytes) -> None:
    """What the file says is for people: a lock whose file says nothing is still a lock."""
    path = tmp_path / "a.lock"
    with hold(path, wait=False):
        path.write_bytes(content)
        with pytest.raises(Held, match="another process"), hold(path, wait=False):
            pass


def test_file_system_without_locks_is_named(tmp_path: Path, monkeypatch) -> None:
    """Where the system cannot lock, the error names the file."""

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(Unable, match=r"a\.lock: no locks available"),
        hold(tmp_path / "a.lock", wait=False),
    ):
        pass


def test_signature_holds_no_secret(tmp_path: Path, monkeypatch) -> None:
    """A token on the command line does not get into the lock file."""
    monkeypatch.setattr(sys, "argv", ["pipeline", "hub.token=canary"])
    with hold(tmp_path / "a.lock", wait=False):
        text = (tmp_path / "a.lock").read_text()
    assert "hub.token" in text
    assert "canary" not in text
