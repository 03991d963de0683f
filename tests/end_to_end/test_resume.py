"""The same command after whatever stopped a training continues, and ends as if never stopped."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cli
import pytest

COMMAND = (*cli.QUICK[:2], "lora.rank=2", "lora.dropout=0.1", "train.steps=16",
           "train.validations_per_epoch=2", "train.checkpoint_every=2", cli.TRAIN)  # fmt: skip


def reach(process: subprocess.Popen[str], cwd: Path, step: int) -> None:
    """Wait until that training step of the newest run is recorded."""
    deadline = time.monotonic() + 120
    while True:
        files = cwd.glob("outputs/runs/default/2*/metrics.jsonl")
        newest = max(files, default=None)
        if newest and any(row["step"] >= step for row in history(newest)):
            return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def history(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of training, without what a clock says."""
    rows = [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]
    timed = ("time", "train.tokens_per_second")
    return [{name: value for name, value in row.items() if name not in timed}
            for row in rows if row["stage"] == "train"]  # fmt: skip


def newest_run(cwd: Path) -> Path:
    return max(path for path in (cwd / "outputs/runs/default").iterdir() if path.name != "latest")


def left(cwd: Path) -> list[str]:
    """Return the names of the checkpoints that lie in the store."""
    return sorted(path.name for path in cwd.glob("outputs/store/.checkpoints/*/*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    """Train once without a stop; return the adapter and the rows of its history."""
    directory, record = cli.succeed(tmp_path_factory.mktemp("whole"), *COMMAND)
    assert "resumed_from_step" not in record["stages"]["train"]
    adapter = (directory / "train/adapters.safetensors").read_bytes()
    return adapter, history(directory / "metrics.jsonl")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_same_command_continues(
    tmp_path: Path, whole: Any, number: signal.Signals, code: int
) -> None:
    """After SIGTERM no step is lost, after kill -9 those since the last checkpoint; the
    adapter and the history are those of a run that nobody stopped, and run.json says from where."""
    process = cli.start(tmp_path, *COMMAND)
    reach(process, tmp_path, 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    steps = [int(name.rpartition("-")[2]) for name in left(tmp_path) if name.startswith("step")]
    if number is not signal.SIGKILL:
        assert "the same command continues" in out
        assert "the same command continues" in err
        assert max(steps) == stopped_at(tmp_path)
    assert max(steps) >= 2
    directory, record = cli.succeed(tmp_path, *COMMAND)
    assert record["stages"]["train"]["status"] == "ran"
    assert record["stages"]["train"]["resumed_from_step"] in steps
    assert f"continues after step {max(steps)} of 16" in (directory / "pipeline.log").read_text()
    adapter = (directory / "train/adapters.safetensors").read_bytes()
    assert (adapter, history(directory / "metrics.jsonl")) == whole
    assert history(directory / "train/metrics.jsonl") == whole[1]
    assert left(tmp_path) == []


def stopped_at(cwd: Path) -> int:
    """Return the last step that the newest run recorded, which must say that it was stopped."""
    directory = newest_run(cwd)
    assert cli.record(directory)["status"] == "interrupted"
    return int(history(directory / "metrics.jsonl")[-1]["step"])


def test_starting_over_and_damage(tmp_path: Path, whole: Any) -> None:
    """`train.resume=never` ignores the checkpoints, and a damaged newest one is named and the one
    before it taken; both end with the bytes of a run that nobody stopped."""
    process = cli.start(tmp_path, *COMMAND)
    reach(process, tmp_path, 7)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (place,) = tmp_path.glob("outputs/store/.checkpoints/train-*")
    older, newest = sorted(place.iterdir())
    file = newest / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "outputs", copied, symlinks=True)
    dry = cli.run(tmp_path, *COMMAND, "dry_run=true")
    assert f"continues after step {int(newest.name.rpartition('-')[2])}" in dry.stdout
    directory, record = cli.succeed(tmp_path, *COMMAND)
    assert record["stages"]["train"]["resumed_from_step"] == int(older.name.rpartition("-")[2])
    log = (directory / "pipeline.log").read_text()
    assert f"damaged checkpoint {newest}: tensors.safetensors: changed" in log
    assert (directory / "train/adapters.safetensors").read_bytes() == whole[0]
    again, record = cli.succeed(tmp_path, *COMMAND, "train.resume=never", f"outputs={copied}")
    assert "resumed_from_step" not in record["stages"]["train"]
    assert (again / "train/adapters.safetensors").read_bytes() == whole[0]


@pytest.mark.chaos
def test_killed_at_any_moment_the_same_command_ends_the_same(tmp_path: Path, whole: Any) -> None:
    """Kill -9 of the orchestrator or of its worker at 24 random moments, up to four in one
    training: in the end adapter and history are those of a run that nobody stopped."""
    choose = random.Random(5)
    for number in range(6):
        cwd = tmp_path / str(number)
        cwd.mkdir()
        for _ in range(4):
            process = cli.start(cwd, *COMMAND)
            time.sleep(choose.uniform(1, 12))
            found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)],
                                   capture_output=True, text=True, check=False)  # fmt: skip
            for victim in choose.choice(([process.pid], [int(p) for p in found.stdout.split()])):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            process.communicate(timeout=60)
        directory, _ = cli.succeed(cwd, *COMMAND)
        adapter = (directory / "train/adapters.safetensors").read_bytes()
        assert (adapter, history(directory / "metrics.jsonl")) == whole
        assert left(cwd) == []
