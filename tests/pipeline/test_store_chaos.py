"""Whatever fails and whenever a process dies, no half entry can be read."""

import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Unable
from pipeline.record import RunRecord, read_run
from pipeline.store import Entry, Store

ROOT = Path(__file__).parents[2]
FILES = {"adapters.safetensors": b"weights" * 99, "sub/metrics.jsonl": b"{}\n"}
CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "symlink", "scandir", "lstat")
"""What the store asks of the operating system through `os`."""


class Faults:
    """Let the Nth call, or every call from the Nth on, fail."""

    def __init__(self, first: int, number: int, persistent: bool) -> None:
        self.first, self.number, self.persistent = first, number, persistent
        self.calls = 0

    def wrap(self, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.first or (self.persistent and self.calls > self.first):
                raise OSError(self.number, os.strerror(self.number))
            return function(*arguments, **named)

        return call

    @property
    def struck(self) -> bool:
        return self.calls >= self.first


@contextmanager
def failing(first: int, number: int, persistent: bool) -> Iterator[Faults]:
    faults = Faults(first, number, persistent)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, faults.wrap(getattr(os, name)))
        yield faults


def make(store: Store) -> Entry:
    staging = store.stage_directory("train", "k")
    for name, content in FILES.items():
        path = staging / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return put(store, staging)


def put(store: Store, staging: Path) -> Entry:
    about: dict[str, Any] = {"ingredients": {"rank": 8}, "metrics": {"loss": 1.0}, "seconds": 1.0}
    return store.commit(staging, "train", "k", **about)


def assert_whole_or_absent(store: Store) -> Entry | None:
    found = store.find("train", "k")
    if found is not None:
        assert store.verify(found) == []
        assert {name: (found.directory / name).read_bytes() for name in FILES} == FILES
    return found


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_failing_call_is_reported_and_leaves_no_half_entry(
    tmp_path: Path, number: int, persistent: bool
) -> None:
    """With any one call of a commit failing, once or from then on, the commit succeeds or says
    what failed, an entry is whole or absent, and the same files can be committed afterwards."""
    for first in range(1, 200):
        store = Store(tmp_path / str(first))
        staging = store.stage_directory("train", "k")
        for name, content in FILES.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
        failure: Unable | None = None
        with failing(first, number, persistent) as faults:
            try:
                put(store, staging)
            except Unable as error:
                failure = error
        if not faults.struck:
            assert failure is None
            assert first > 15
            return
        found = assert_whole_or_absent(store)
        if failure is None:
            assert found is not None
        else:
            assert str(tmp_path) in failure.where
            assert failure.mend
            if number == errno.ENOSPC:
                assert re.search(r"needed [\d,]+ bytes, free [\d,]+ bytes", failure.found)
        if found is None:
            put(store, staging)
            assert assert_whole_or_absent(store) is not None
    pytest.fail("the commit never ran without a fault")


def test_every_failing_call_of_a_run_record_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """With any one call failing while a run is recorded, run.json can be read and is the one
    before or the one after."""
    about: dict[str, Any] = {"config": {"name": "a"}, "command": [], "model": {}, "environment": {}}
    for first in range(1, 200):
        directory = tmp_path / str(first)
        entry = make(Store(tmp_path / "store" / str(first)))
        failure: Unable | None = None
        with RunRecord.start(directory, **about) as record:
            with failing(first, errno.ENOSPC, persistent=False) as faults:
                try:
                    record.stage("train", "k", "ran", entry)
                except Unable as error:
                    failure = error
            stages = read_run(directory)["stages"]
            assert stages.keys() <= {"train"}
            assert stages if failure is None else str(tmp_path) in failure.where
        if not faults.struck:
            assert first > 5
            return
        assert read_run(directory)["status"] == "succeeded"
    pytest.fail("the record was never written without a fault")


def test_file_size_limit_is_reported(tmp_path: Path) -> None:
    """A real refusal of the kernel half-way through the manifest leaves no entry."""
    store = Store(tmp_path / "store")
    staging = store.stage_directory("train", "k")
    (staging / "f").write_bytes(b"x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(Unable, match="ulimit -f"):
            store.commit(
                staging, "train", "k", ingredients={"a": "b" * 9999}, metrics={}, seconds=1.0
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.find("train", "k") is None
    assert [path.name for path in staging.iterdir()] == ["f"]


CRASH = """
import os, signal, sys
from pathlib import Path
from pipeline.store import Store
root, calls = Path(sys.argv[1]), sys.argv[2].split(",")
real = {name: getattr(os, name) for name in calls}

def dying(first):
    count = 0
    def wrap(function):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count == first:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)
        return call
    for name, function in real.items():
        setattr(os, name, wrap(function))

for first in range(1, 200):
    store = Store(root / str(first))
    staging = store.stage_directory("train", "k")
    (staging / "sub").mkdir()
    (staging / "adapters.safetensors").write_bytes(b"weights" * 99)
    (staging / "sub/metrics.jsonl").write_bytes(b"{}\\n")
    child = os.fork()
    if child == 0:
        dying(first)
        with store.lock("train", "k"):
            store.commit(staging, "train", "k", ingredients={}, metrics={}, seconds=1.0)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(first)
        break
"""


def test_death_before_any_call_leaves_no_half_entry(tmp_path: Path) -> None:
    """Killed just before any one of its calls, a commit leaves a whole entry or none, and the next
    holder of the lock can commit."""
    command = [sys.executable, "-c", CRASH, str(tmp_path), ",".join(CALLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    attempts = int(done.stdout)
    assert attempts > 15
    outcomes = set()
    for first in range(1, attempts):
        store = Store(tmp_path / str(first))
        outcomes.add(assert_whole_or_absent(store) is not None)
        with store.lock("train", "k"):
            make(store)
        assert assert_whole_or_absent(store) is not None
        assert list((store.root / ".partial").iterdir()) == []
    assert outcomes == {False, True}


COMMIT_FOREVER = """
import itertools, sys
from pathlib import Path
from pipeline.store import Store
store = Store(Path(sys.argv[1]))
for number in itertools.count():
    key = f"{sys.argv[2]}-{number}"
    with store.lock("train", key):
        staging = store.stage_directory("train", key)
        for name in "abc":
            (staging / name).write_bytes(bytes(20_000))
        store.commit(staging, "train", key, ingredients={}, metrics={}, seconds=1.0)
    if number == 0:
        print("started", flush=True)
"""


@pytest.mark.chaos
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """After kill -9 at 60 random moments every entry verifies in full, locks are free, and what
    was cut off can be made again."""
    store = Store(tmp_path / "store")
    moments = random.Random(7)
    for attempt in range(60):
        command = [sys.executable, "-c", COMMIT_FOREVER, str(store.root), str(attempt)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "started\n"
            time.sleep(moments.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        keys = {p.name for p in (store.root / "train").glob(f"{attempt}-*")}
        begun = {p.name[6:-5] for p in (store.root / ".locks").glob(f"train-{attempt}-*")}
        for key in keys:
            found = store.find("train", key)
            assert found is not None, key
            assert store.verify(found) == []
        for key in begun - keys:
            with store.lock("train", key):
                staging = store.stage_directory("train", key)
                (staging / "f").write_bytes(b"x")
                store.commit(staging, "train", key, ingredients={}, metrics={}, seconds=1.0)
    assert list((store.root / ".partial").iterdir()) == []
