"""Processes that mlx.launch starts: the same as one alone, and the first one alone records."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cli
import pytest
from test_resume import COMMAND, history, left, newest_run, reach
from test_signals import children

LAUNCH = Path(sys.executable).with_name("mlx.launch")
WORDS = (*cli.QUICK, cli.TRAIN, "train.log_every=1", "lora.dropout=0.2", "train.batch_size=3",
         "train.grad_accumulation_steps=2")  # fmt: skip


def free_port() -> int:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1])


@contextmanager
def launched(
    cwd: Path, *words: str, apart: bool = False, own: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Start two processes with mlx.launch; `apart`: each in a directory of its own, 0 and 1;
    `own`: words in which a shell puts the rank.

    Each writes its process id into the file `pid0` or `pid1` of `cwd`.
    """
    command = shlex.join([sys.executable, "-m", "pipeline", *words])
    where = "cd $MLX_RANK && " if apart else ""
    (cwd / "start.sh").write_text(f"echo $$ > pid$MLX_RANK; {where}exec {command} {own}")
    for name in ("0", "1"):
        (cwd / name).mkdir(exist_ok=True)
    arguments = ["-n", "2", "-p", str(free_port()), "--", "bash", "start.sh"]
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH), *arguments], cwd=cwd, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(cwd: Path, *words: str, apart: bool = False, own: str = "") -> tuple[str, str]:
    """Return what two launched processes printed."""
    with launched(cwd, *words, apart=apart, own=own) as process:
        return process.communicate(timeout=180)


def pid(cwd: Path, rank: int) -> int:
    return int((cwd / f"pid{rank}").read_text())


def losses(directory: Path) -> list[tuple[int, float]]:
    rows = history(directory / "metrics.jsonl")
    return [(row["step"], row[name]) for row in rows
            for name in ("train.loss", "valid.loss") if name in row]  # fmt: skip


def test_two_launched_are_one(tmp_path: Path) -> None:
    """Loss by loss as one process, byte by byte as two local ones, whose key it has."""
    alone, _ = cli.succeed(tmp_path, *WORDS, "train.workers=1")
    local, beside = cli.succeed(tmp_path, *WORDS, "train.workers=2", "outputs=local")
    out, err = run(tmp_path, *WORDS)
    assert err == ""
    directory = tmp_path / out.rstrip().splitlines()[-1].removeprefix("run: ")
    runs = sorted(path.name for path in tmp_path.glob("outputs/runs/default/2*"))
    assert runs == sorted([alone.name, directory.name])
    record = cli.record(directory)
    assert record["metrics"]["train.workers"] == 2
    assert record["stages"]["train"]["key"] == beside["stages"]["train"]["key"]
    assert [step for step, _ in losses(directory)] == [step for step, _ in losses(alone)]
    ours, theirs = ([loss for _, loss in losses(one)] for one in (directory, alone))
    assert len(ours) >= 8
    assert ours == pytest.approx(theirs, rel=1e-5)
    name = "train/adapters.safetensors"
    assert (directory / name).read_bytes() == (local / name).read_bytes()


@pytest.mark.slow
def test_what_the_first_has_ends_all(tmp_path: Path) -> None:
    """A training that is in the first one's store is reused, and the other trains nothing."""
    (tmp_path / "0").mkdir()
    cli.succeed(tmp_path / "0", *WORDS, "train.workers=2")
    out, err = run(tmp_path, *WORDS, apart=True)
    assert err == ""
    assert "train     reused" in out
    assert {path.name for path in (tmp_path / "1/outputs/store").iterdir()} >= {"prepare"}
    assert not (tmp_path / "1/outputs/runs").exists()
    assert not (tmp_path / "1/outputs/store/train").exists()


@pytest.mark.slow
def test_another_training_is_refused(tmp_path: Path) -> None:
    """Processes that would train different things are told, in one line, what differs."""
    _, err = run(tmp_path, *WORDS, own="seed=$((7 + MLX_RANK))")
    assert "error: mlx.launch: process 1 would train something else: " in err
    assert "settings.seed: 8 there, 7 here" in err
    assert "Traceback" not in err
    assert not (tmp_path / "outputs/store/train").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-m", "lora.rank=2,4"), "mlx.launch: found a sweep"),
        (("train.workers=3",), "train.workers: found 3, but mlx.launch started 2 processes"),
        (("train.batch_size=1", "train.grad_accumulation_steps=1"),
         "train.workers: mlx.launch started 2 processes, but a step has 1 rows"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    """What launched processes cannot do is refused with the key or the launcher named."""
    _, err = run(tmp_path, *words)
    assert f"error: {told}" in err
    assert not (tmp_path / "outputs").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Train once without a stop; return the adapter."""
    directory, _ = cli.succeed(tmp_path_factory.mktemp("whole"), *COMMAND, "train.workers=2")
    return (directory / "train/adapters.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_death_of_one_ends_all_and_the_same_command_continues(
    tmp_path: Path, whole: bytes, rank: int
) -> None:
    """Kill -9 of either, on disks apart: nothing hangs, and the other process goes on from the
    first one's checkpoint, to the bytes of a training that nobody stopped."""
    with launched(tmp_path, *COMMAND, apart=True) as process:
        reach(process, tmp_path / "0", 5)
        workers = [child for number in (0, 1) for child in children(pid(tmp_path, number))]
        assert len(workers) == 2
        os.kill(pid(tmp_path, rank), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert all_gone(workers)
    steps = [name for name in left(tmp_path / "0") if name.startswith("step")]
    assert steps
    assert left(tmp_path / "1") == []
    out, err = run(tmp_path, *COMMAND, apart=True)
    assert err == ""
    directory = tmp_path / "0" / out.rstrip().splitlines()[-1].removeprefix("run: ")
    found = cli.record(directory)["stages"]["train"]["resumed_from_step"]
    assert f"step-{found:08d}" == max(steps)
    assert (directory / "train/adapters.safetensors").read_bytes() == whole
    assert not (tmp_path / "1/outputs/runs").exists()


@pytest.mark.slow
def test_interrupt_ends_all_after_the_same_step(tmp_path: Path, whole: bytes) -> None:
    """Ctrl-C reaches all processes: the first one keeps that step, and the command continues."""
    with launched(tmp_path, *COMMAND, apart=True) as process:
        reach(process, tmp_path / "0", 5)
        for rank in (0, 1):
            os.kill(pid(tmp_path, rank), signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert cli.record(newest_run(tmp_path / "0"))["status"] == "interrupted"
    last = history(newest_run(tmp_path / "0") / "metrics.jsonl")[-1]["step"]
    assert max(left(tmp_path / "0")) == f"step-{last:08d}"
    out, err = run(tmp_path, *COMMAND, apart=True)
    assert err == ""
    directory = tmp_path / "0" / out.rstrip().splitlines()[-1].removeprefix("run: ")
    assert (directory / "train/adapters.safetensors").read_bytes() == whole


def all_gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(Path("/proc", str(number)).exists() for number in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_different_steps_are_refused(tmp_path: Path) -> None:
    """Where one process finds its copy of the newest checkpoint damaged, nothing is trained."""
    with launched(tmp_path, *COMMAND, apart=True) as process:
        reach(process, tmp_path / "0", 7)
        for rank in (0, 1):
            os.kill(pid(tmp_path, rank), signal.SIGINT)
        process.communicate(timeout=60)
    name = "outputs/store/.checkpoints"
    shutil.copytree(tmp_path / "0" / name, tmp_path / "1" / name)
    newest = max((tmp_path / "1" / name).glob("*/step-*")) / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    _, err = run(tmp_path, *COMMAND, apart=True)
    assert "error: train.resume: the processes stand after different steps: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "0/outputs/store/train").exists()


@pytest.mark.slow
def test_each_machine_keeps_what_frozen_blocks_give(tmp_path: Path) -> None:
    """Processes with no folder in common have files of their own, and the bytes of local ones."""
    words = (*cli.QUICK, cli.TRAIN, "lora.num_layers=1", "train.prefix_cache_gb=1",
             "train.batch_size=16")  # fmt: skip
    local, _ = cli.succeed(tmp_path, *words, "train.workers=2")
    out, err = run(tmp_path, *words, apart=True)
    assert err == ""
    assert "their output is kept for" in out
    directory = tmp_path / "0" / out.rstrip().splitlines()[-1].removeprefix("run: ")
    name = "train/adapters.safetensors"
    assert (directory / name).read_bytes() == (local / name).read_bytes()
