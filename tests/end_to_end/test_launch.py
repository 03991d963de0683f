"""Processes that mlx.launch starts: the same as one alone, and the first one alone records."""

from __future__ import annotations

import json
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
from test_signals import LONG, children

LAUNCH = Path(sys.executable).with_name("mlx.launch")
WORDS = (*cli.QUICK, cli.TRAIN, "train.log_every=1", "lora.dropout=0.2", "train.batch_size=3",
         "train.grad_accumulation_steps=2")  # fmt: skip


def free_port() -> int:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1])


@contextmanager
def launched(cwd: Path, *words: str, apart: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Start two processes with mlx.launch; `apart`: each in a directory of its own, 0 and 1.

    Each writes its process id into the file `pid0` or `pid1` of `cwd`.
    """
    command = shlex.join([sys.executable, "-m", "pipeline", *words])
    where = "cd $MLX_RANK && " if apart else ""
    (cwd / "start.sh").write_text(f"echo $$ > pid$MLX_RANK; {where}exec {command}")
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


def run(cwd: Path, *words: str, apart: bool = False) -> tuple[str, str]:
    """Return what two launched processes printed."""
    with launched(cwd, *words, apart=apart) as process:
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
    runs = sorted(path.name for path in (tmp_path / "outputs/runs/default").iterdir())
    assert runs == sorted([alone.name, directory.name, "latest"])
    record = cli.record(directory)
    assert record["metrics"]["train.workers"] == 2
    assert record["stages"]["train"]["key"] == beside["stages"]["train"]["key"]
    assert [step for step, _ in losses(directory)] == [step for step, _ in losses(alone)]
    ours, theirs = ([loss for _, loss in losses(one)] for one in (directory, alone))
    assert len(ours) >= 8
    assert ours == pytest.approx(theirs, rel=1e-5)
    name = "train/adapters.safetensors"
    assert (directory / name).read_bytes() == (local / name).read_bytes()


def test_what_is_found_ends_all(tmp_path: Path) -> None:
    """A training that the first process has in its store, and another that is not the same."""
    (tmp_path / "0").mkdir()
    cli.succeed(tmp_path / "0", *WORDS, "train.workers=2")
    out, err = run(tmp_path, *WORDS, apart=True)
    assert err == ""
    assert "train     reused" in out
    assert not (tmp_path / "1/outputs/runs").exists()
    assert not (tmp_path / "1/outputs/store/train").exists()
    out, err = run(tmp_path, *WORDS, "seed=$MLX_RANK".replace("$MLX_RANK", "7"), apart=True)
    assert "ran" in out
