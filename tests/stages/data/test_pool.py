"""One function over many chunks in several processes."""

from __future__ import annotations

import copy
import fcntl
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stages.data.pool import open_pool, processes_for
from stages.errors import EnvironmentFailure, InputError, SettingError, StageError, StopRequested

WORK = """
import fcntl, os, signal, sys, time
from functools import partial
from stages.errors import EnvironmentFailure, InputError, SettingError

class Unportable(Exception):
    def __init__(self, one, two):
        super().__init__("cannot travel")

def setup(name):
    if name == "refuse":
        raise SettingError("data.convert", "found no function", "write one")
    return globals()[name]


def late_double(chunk):
    time.sleep(chunk % 3 / 50)
    return 2 * chunk

def mirror(chunk):
    return chunk[::-1]

def fail(kind):
    if kind == "exit":
        sys.exit(0)
    if kind == "class":
        raise Unportable(1, 2)
    if kind == "unknown":
        there = type("There", (Exception,), {"__module__": "only_there"})
        sys.modules["only_there"] = sys
        sys.There = there
        raise there("made in the child")
    if kind == "result":
        return lambda: None
    raise {"value": ValueError("no number"),
           "setting": SettingError("data.path", "found", "mend"),
           "input": InputError("rows.jsonl:3", "found", "mend"),
           "machine": EnvironmentFailure("memory", "found", "mend")}[kind]

def end(how):
    if how is None:
        return 1
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)

def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()

def hold(path):
    file = open(path, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    print(path, flush=True)
    time.sleep(600)

def look(inode):
    opened = []
    for descriptor in range(256):
        try:
            opened.append(os.fstat(descriptor).st_ino)
        except OSError:
            pass
    same = os.path.sameopenfile(1, 2)
    return inode in opened, sys.stdin.read(), same, os.environ["TOKENIZERS_PARALLELISM"]
"""


Work = Callable[[str], Callable[[], Callable[[Any], Any]]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return the maker of a set-up by the name of its function, which children can import."""
    (tmp_path / "pool_work.py").write_text(WORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "pool_work", sys)
    del sys.modules["pool_work"]
    setup = importlib.import_module("pool_work").setup
    return lambda name: partial(setup, name)


def gone(process: int) -> bool:
    """Tell whether a process has ended and was waited for."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_chunks(work: Work, processes: int) -> None:
    """Whatever each chunk takes and however many processes there are, the results are the same."""
    with open_pool(work("late_double"), processes) as pool:
        assert list(pool.map(range(11))) == [2 * chunk for chunk in range(11)]
        assert list(pool.map([])) == []
        assert list(pool.map([5])) == [10]


@pytest.mark.parametrize(("processes", "most"), [(1, 1), (2, 5)])
def test_chunks_are_read_as_needed(work: Work, processes: int, most: int) -> None:
    """At most two chunks for each process, and the next one, are read before their results."""
    read = 0

    def chunks() -> Iterator[int]:
        nonlocal read
        while read < 40:
            read += 1
            yield read

    with open_pool(work("late_double"), processes) as pool:
        for taken, _ in enumerate(pool.map(chunks())):
            assert read - taken <= most
    assert read == 40


def test_chunks_and_results_may_be_larger_than_the_pipe(work: Work) -> None:
    """Megabytes go both ways at once without either end waiting for the other for ever."""
    chunks = [bytes([first]) + b"x" * 3_000_000 for first in range(9)]
    with open_pool(work("mirror"), 2) as pool:
        found = list(pool.map(chunks))
    assert [(len(result), result[-1]) for result in found] == [(3_000_001, n) for n in range(9)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("setting", SettingError("data.path", "found", "mend")),
        ("input", InputError("rows.jsonl:3", "found", "mend")),
        ("machine", EnvironmentFailure("memory", "found", "mend")),
    ],
)
def test_a_refusal_comes_back_as_itself(
    work: Work, processes: int, kind: str, error: StageError
) -> None:
    """A person reads the same message, whichever process found the fault."""
    with open_pool(work("fail"), processes) as pool, pytest.raises(type(error)) as caught:
        list(pool.map([kind]))
    assert str(caught.value) == str(error)
    said = (caught.value.where, caught.value.found, caught.value.mend)
    assert said == (error.where, error.found, error.mend)


@pytest.mark.parametrize(
    "error", [SettingError("a", "b", "c"), InputError("a:1", "b"), StopRequested()]
)
def test_stage_errors_can_be_pickled_and_copied(error: StageError) -> None:
    """Type, message and parts survive; what was attached does too."""
    error.add_note("more")
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("kind", "type_", "message"),
    [
        ("value", ValueError, "^no number"),
        ("class", RuntimeError, "cannot travel"),
        ("unknown", RuntimeError, "made in the child"),
        ("exit", RuntimeError, "SystemExit: 0"),
        ("result", Exception, "pickle"),
    ],
)
def test_a_bug_comes_back_with_its_place(
    work: Work, kind: str, type_: type[Exception], message: str
) -> None:
    """The error keeps its type where that can travel, and always says where it was raised."""
    with open_pool(work("fail"), 2) as pool, pytest.raises(type_, match=message) as caught:
        list(pool.map([kind, kind, kind]))
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "Traceback" in said
    assert "in _answer" in said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_set_up_is_told_once(work: Work, processes: int) -> None:
    """What cannot be loaded is refused as itself, not as a process that died."""
    with (
        pytest.raises(SettingError, match=r"^data.convert: found no function; write one$"),
        open_pool(work("refuse"), processes) as pool,
    ):
        list(pool.map(range(9)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (-9, r"died \(signal 9\), most likely for lack of memory; close other programs"),
        (-11, r"died \(signal 11\); see the end of the log"),
        (3, r"died \(code 3\); see the end of the log"),
    ],
)
def test_a_dead_process_is_told_and_waited_for_by_nobody(
    work: Work, how: int, message: str
) -> None:
    """A process that the system kills ends the work with the reason, though more chunks come."""
    with open_pool(work("end"), 2) as pool, pytest.raises(EnvironmentFailure, match=message):
        list(pool.map([None, None, how, *[None] * 40]))


def test_leaving_early_ends_busy_processes(work: Work) -> None:
    """Neither process is left, though both are at work for a minute."""
    with open_pool(work("sleep"), 2) as pool:
        results = pool.map([0, 0, 60, 60, 60])
        children = {next(results), next(results)}
        assert len(children) == 2
        assert not any(gone(child) for child in children)
    assert all(gone(child) for child in children)


def test_processes_ignore_what_the_terminal_interrupts(work: Work) -> None:
    """Ctrl-C is for the parent to decide upon."""
    with open_pool(work("sleep"), 2) as pool:
        first, second = pool.map([0, 0])
        os.kill(first, signal.SIGINT)
        os.kill(second, signal.SIGINT)
        assert list(pool.map([0, 0])) == [first, second]


def test_processes_inherit_nothing_that_matters(work: Work, tmp_path: Path) -> None:
    """An open file of the parent is not theirs, nor its standard input and output."""
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        inode = os.fstat(lock.fileno()).st_ino
        with open_pool(work("look"), 2) as pool:
            assert list(pool.map([inode])) == [(False, "", True, "false")]


def script(work_directory: Path, *lines: str) -> list[str]:
    """Return the command of a program without a guard for being imported, which has a pool."""
    file = work_directory / "script.py"
    head = ["import os, signal, sys", "import pool_work", "from stages.data.pool import open_pool"]
    file.write_text("\n".join([*head, 'print("once", flush=True)', *lines]), encoding="utf-8")
    return [sys.executable, str(file)]


def test_the_main_module_runs_once_and_owns_standard_output(work: Work, tmp_path: Path) -> None:
    """A child does not run the program again, and what it prints goes to standard error."""
    command = script(
        tmp_path,
        'with open_pool(pool_work.partial(pool_work.setup, "fail"), 2) as pool:',
        '    try: list(pool.map(["value"]))',
        '    except ValueError: print("caught")',
        "with open_pool(pool_work.partial(pool_work.partial, print), 2) as pool:",
        '    print(list(pool.map(["aside"])))',
        "try: os.waitpid(-1, os.WNOHANG)",
        'except ChildProcessError: print("no child left")',
    )
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout == "once\ncaught\n[None]\nno child left\n"
    assert done.stderr == "aside\n"


def test_processes_die_with_their_parent(work: Work, tmp_path: Path) -> None:
    """However the parent ends, the processes end at once: the locks that they held are free."""
    locks = [str(tmp_path / "one"), str(tmp_path / "two")]
    command = script(
        tmp_path,
        'with open_pool(pool_work.partial(pool_work.setup, "hold"), 2) as pool:',
        f"    list(pool.map({locks!r}))",
    )
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stderr is not None
        assert {parent.stderr.readline().strip() for _ in locks} == set(locks)
        assert not any(free(lock) for lock in locks)
        parent.kill()
    deadline = time.monotonic() + 10
    while not all(free(lock) for lock in locks):
        assert time.monotonic() < deadline


def free(lock: str) -> bool:
    """Tell whether nobody holds the lock."""
    with Path(lock).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_small_data_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process must be worth its start; large data gets one for each core, at most eight."""
    found = {}
    for cores in (1, 2, 5, 64):
        usable = set(range(cores))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, usable=usable: usable, raising=False)
        found[cores] = (processes_for(1 << 20), processes_for(1 << 40))
    assert found == {1: (1, 1), 2: (1, 2), 5: (1, 5), 64: (1, 8)}
