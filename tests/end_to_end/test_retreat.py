"""Training that runs out of memory goes on in smaller batches, and says so everywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli
import pytest
from test_signals import children, training

STARVED = """
import importlib.machinery, sys
from pathlib import Path

class Starved(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "stages.training.step":
            return None
        spec = super().find_spec(name, path, target)
        spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        whole = module.compile_gradients
        def compile_gradients(*arguments):
            gradients = whole(*arguments)
            def starved(parameters, batch, keys):
                once = Path(__file__).with_name("starved")
                if not once.exists():
                    once.touch()
                    raise MemoryError("made up")
                return gradients(parameters, batch, keys)
            return starved
        module.compile_gradients = compile_gradients

sys.meta_path.insert(0, Starved)
"""
COUNTING = """
import sys
from pathlib import Path
import pipeline.deaths
pipeline.deaths.COUNTERS = Path("counters")
from pipeline.app import main
sys.argv = ["pipeline", *sys.argv[1:]]
main()
"""


def trained(cwd: Path) -> list[str]:
    """Return the keys of the trainings in the store."""
    return [path.name for path in (cwd / "outputs/store/train").glob("*")]


def losses(directory: Path) -> list[float]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row["train.loss"] for row in rows if "train.loss" in row]


def check(cwd: Path, directory: Path, record: dict[str, Any], steps: int = 6) -> None:
    """Check that a run says in its record, its log and the store that 8 rows became 4."""
    key = record["stages"]["train"]["key"]
    assert record["config"]["train"]["batch_size"] == 8
    assert record["metrics"]["train.micro_batch_size"] == 4
    assert trained(cwd) == [key]
    made_of = json.loads((directory / "train" / "manifest.json").read_text())["ingredients"]
    train = made_of["settings"]["train"]
    assert (train["batch_size"], train["grad_accumulation_steps"]) == (4, 2)
    log = (directory / "pipeline.log").read_text()
    assert log.count("training starts anew with 4 rows at a time instead of 8") == 1
    (note,) = (cwd / "outputs/store/.retreats").iterdir()
    assert note.stem != key
    # The rows of the attempt that failed are no part of the course.
    assert len(losses(directory)) == steps


def test_limit_halves_the_batch(tmp_path: Path) -> None:
    """Under a limit between what 8 and 4 rows take, the first run retreats and the second reuses
    its result, which is that of 4 rows and 2 passes; without the limit, the losses are the same."""
    # Two processes hold so little beside their programs that the limit would lie within a rounding.
    words = (*cli.QUICK, cli.TRAIN, "train.workers=1")
    first, _ = cli.succeed(tmp_path, *words, "train.memory_limit=900GB")
    (line,) = re.findall(r"memory: about ([\d.]+) .*activations ([\d.]+), logits ([\d.]+)",
                         (first / "pipeline.log").read_text())  # fmt: skip
    total, activations, logits = map(float, line)
    limit = f"train.memory_limit={total - (activations + logits) / 4:.4f}GiB"
    whole = trained(tmp_path)
    words = (*words, "lora.alpha=3")
    directory, record = cli.succeed(tmp_path, *words, limit)
    # As `check` expects it, only what this run has made.
    (tmp_path / "outputs/store/train" / whole[0]).rename(tmp_path / "aside")
    check(tmp_path, directory, record)
    for again in ((*words, limit),
                  (*words, "train.batch_size=4", "train.grad_accumulation_steps=2")):  # fmt: skip
        _, reused = cli.succeed(tmp_path, *again)
        assert reused["stages"]["train"]["key"] == record["stages"]["train"]["key"]
        assert cli.statuses(reused)["train"] == "reused"
    whole_directory, record = cli.succeed(tmp_path, *words)
    assert record["metrics"]["train.micro_batch_size"] == 8
    assert losses(directory) == pytest.approx(losses(whole_directory), rel=1e-5)


def test_stage_without_memory_starts_anew(tmp_path: Path) -> None:
    """A MemoryError in a first step costs no run; the same command goes on from there."""
    (tmp_path / "sitecustomize.py").write_text(STARVED)
    paths = os.pathsep.join([str(tmp_path), str(cli.ROOT)])
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    words = (*cli.QUICK, cli.TRAIN)
    check(cwd, *cli.succeed(cwd, *words, PYTHONPATH=paths))
    directory, record = cli.succeed(cwd, *words)
    assert cli.statuses(record)["train"] == "reused"
    assert "4 rows at a time, as memory ran out before" in (directory / "pipeline.log").read_text()


def test_worker_that_the_system_killed_starts_anew(tmp_path: Path) -> None:
    """Kill -9 while the system counts one more process killed for lack of memory is such a lack."""
    counters = tmp_path / "counters"
    counters.write_text("pgfault 12\noom_kill 7\n")
    words = [word.replace("steps=6", "steps=60") for word in cli.QUICK]
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING, *words, cli.TRAIN],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(cli.ROOT)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    training(process, tmp_path)
    counters.write_text("pgfault 13\noom_kill 8\n")
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    directory = tmp_path / out.rstrip().splitlines()[-1].removeprefix("run: ")
    check(tmp_path, directory, cli.record(directory), steps=60)


def test_limit_that_nothing_fits_ends_the_run(tmp_path: Path) -> None:
    """Exit code 3 after the last halving, with the key, what is needed and what to change."""
    done = cli.run(tmp_path, *cli.QUICK, cli.TRAIN, "train.memory_limit=20MB")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) <= 3
    assert "train.memory_limit: training needs about" in done.stderr
    assert "at one row at a time" in done.stderr
    assert "data.max_seq_length" in done.stderr
    assert "raise train.memory_limit" in done.stderr
    assert trained(tmp_path) == []
