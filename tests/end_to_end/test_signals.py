"""Interrupted, killed, or started twice: nothing half-made is ever taken for a result."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import cli
import pytest

from pipeline.store import Store

LONG = ("train.epochs=50", "lora.rank=2", cli.TRAIN)


def wait_for(process: subprocess.Popen[str], directory: Path, pattern: str) -> None:
    """Wait until a file of that pattern exists below `directory`."""
    deadline = time.monotonic() + 60
    while not list(directory.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def training(process: subprocess.Popen[str], cwd: Path) -> None:
    """Wait until the first training steps are recorded."""
    wait_for(process, cwd, "outputs/runs/*/*/metrics.jsonl")
    metrics = next(cwd.glob("outputs/runs/*/*/metrics.jsonl"))
    while "train.loss" not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Return the processes that `pid` started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True,
                           check=False)  # fmt: skip
    return [int(word) for word in found.stdout.split()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM end with their exit code, one calm line, and status `interrupted`."""
    process = cli.start(tmp_path, *LONG)
    training(process, tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3
    (directory,) = [path for path in (tmp_path / "outputs/runs/default").iterdir()
                    if not path.is_symlink()]  # fmt: skip
    assert cli.record(directory)["status"] == "interrupted"
    assert not list((tmp_path / "outputs/store").glob("train/*"))


def test_killed_worker_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    """Kill -9 of the worker, without a lack of memory: exit code 3, status `failed`, no result."""
    process = cli.start(tmp_path, *LONG)
    training(process, tmp_path)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "memory" in err
    assert not list((tmp_path / "outputs/store").glob("train/*"))


def test_two_processes_make_one_result(tmp_path: Path) -> None:
    """The second of two equal runs waits for the first one's stages, then reuses them."""
    processes = [cli.start(tmp_path, *cli.QUICK, cli.TRAIN, f"name=run{n}") for n in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    made = []
    for name in ("run0", "run1"):
        record = cli.record(tmp_path / "outputs/runs" / name / "latest")
        made.append(cli.statuses(record))
    for stage in ("prepare", "train"):
        assert sorted(statuses[stage] for statuses in made) == ["ran", "reused"]


def test_run_directory_in_use_is_refused_at_once(tmp_path: Path) -> None:
    """A second process in the same run directory fails at once and names the first."""
    place = f"hydra.run.dir={tmp_path / 'here'}"
    first = cli.start(tmp_path, *LONG, place)
    wait_for(first, tmp_path, "here/run.json")
    second = cli.run(tmp_path, *LONG, place)
    assert second.returncode == 1
    assert str(first.pid) in second.stderr
    assert len(second.stderr.splitlines()) <= 3
    assert cli.record(tmp_path / "here")["status"] == "running"
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)


@pytest.mark.chaos
def test_killed_at_any_moment_the_store_stays_whole(tmp_path: Path) -> None:
    """Kill -9 at 40 moments: every entry verifies, and the next run succeeds."""
    choose = random.Random(0)
    for _ in range(40):
        seed = f"seed={choose.randrange(4)}"
        process = cli.start(tmp_path, *cli.QUICK, cli.TRAIN, seed)
        time.sleep(choose.uniform(0.2, 6))
        process.kill()
        process.communicate()
        store = Store(tmp_path / "outputs" / "store")
        for stage in ("prepare", "train"):
            for entry in store.newest(stage):
                assert store.verify(entry) == []
    for seed in range(4):
        cli.succeed(tmp_path, *cli.QUICK, cli.TRAIN, f"seed={seed}")
