"""Run the pipeline as a person does: a process, a working directory, what it prints."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages.data.samples import rows

ROOT = Path(__file__).parents[2]
SIZES = {"train": 48, "valid": 8, "test": 8}


def _small_rows() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for split, size in SIZES.items():
        lines = [json.dumps(row) + "\n" for row in rows(split)[:size]]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


QUICK = (
    "data=local",
    f"data.path={_small_rows()}",
    "train.steps=6",
    "train.validations_per_epoch=1",
    "evaluate.rows=4",
    "evaluate.max_tokens=8",
    "lora.rank=2",
)
"""Overrides that make a run of seconds."""
TRAIN = "stages=[prepare,train]"


def start(cwd: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start `python -m pipeline` in `cwd`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline` in `cwd` to its end."""
    process = start(cwd, *arguments, **variables)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def succeed(cwd: Path, *arguments: str, **variables: str) -> tuple[Path, dict[str, Any]]:
    """Run to a successful end; return the run directory that the last line names, and run.json."""
    done = run(cwd, *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.rstrip().splitlines()[-1]
    assert last.startswith("run: ")
    directory = cwd / last.removeprefix("run: ")
    return directory, record(directory)


def record(directory: Path) -> dict[str, Any]:
    """Return a run's run.json."""
    return json.loads((directory / "run.json").read_text())


def statuses(run_record: dict[str, Any]) -> dict[str, str]:
    """Return what happened to each stage."""
    return {name: stage["status"] for name, stage in run_record["stages"].items()}
