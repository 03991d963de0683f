"""Processes that train together: the same as one alone, and all gone once one of them is."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import cli
import pytest
from test_signals import LONG, children, training

ALONE, TOGETHER = "train.workers=1", "train.workers=2"


def values(directory: Path, name: str) -> list[float]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def assert_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path("/proc", str(number)).exists() for number in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_twice(cwd: Path, *words: str) -> Path:
    """Train alone and together; compare loss by loss, and return the run of two."""
    words = (*cli.QUICK, cli.TRAIN, "train.log_every=1", *words)
    alone, one = cli.succeed(cwd, *words, ALONE)
    together, two = cli.succeed(cwd, *words, TOGETHER)
    assert (one["metrics"]["train.workers"], two["metrics"]["train.workers"]) == (1, 2)
    assert one["stages"]["train"]["key"] != two["stages"]["train"]["key"]
    assert cli.statuses(two) == {"prepare": "reused", "train": "ran"}
    assert len(values(alone, "train.loss")) == 6
    for name in ("train.loss", "valid.loss"):
        assert values(together, name) == pytest.approx(values(alone, name), rel=1e-5)
    return together


def test_two_train_as_one_and_again_the_same(tmp_path: Path) -> None:
    """Loss by loss, with dropout and accumulation; a second time to the same bytes."""
    words = ("lora.dropout=0.2", "train.batch_size=3", "train.grad_accumulation_steps=2")
    first = trained_twice(tmp_path, *words)
    again, _ = cli.succeed(tmp_path, *cli.QUICK, cli.TRAIN, "train.log_every=1", *words, TOGETHER,
                           "outputs=elsewhere")  # fmt: skip
    name = "train/adapters.safetensors"
    assert (again / name).resolve() != (first / name).resolve()
    assert (again / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.slow
def test_two_share_what_frozen_blocks_give(tmp_path: Path) -> None:
    """Loss by loss as one alone; the files that they share are gone afterwards."""
    directory = trained_twice(tmp_path, "lora.num_layers=1", "train.prefix_cache_gb=1",
                              "train.batch_size=16")  # fmt: skip
    assert "their output is kept for" in (directory / "pipeline.log").read_text()
    assert not list((directory / "train").glob("hidden*"))


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_death_of_one_ends_all(tmp_path: Path, which: int) -> None:
    """Kill -9 of either: exit code 3, why, no result, and no process left."""
    process = cli.start(tmp_path, *LONG, TOGETHER)
    training(process, tmp_path)
    both = sorted(children(process.pid))
    assert len(both) == 2
    os.kill(both[which], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "the worker was killed" in err
    assert len(err.splitlines()) <= 3
    assert_gone(both)
    assert not list((tmp_path / "outputs/store").glob("train/*"))


@pytest.mark.slow
def test_interrupt_ends_all(tmp_path: Path) -> None:
    """Ctrl-C: exit code 130, and no process left."""
    process = cli.start(tmp_path, *LONG, TOGETHER)
    training(process, tmp_path)
    both = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert_gone(both)
    assert not list((tmp_path / "outputs/store").glob("train/*"))


FAILS = """
import importlib.machinery, os, sys

class Failing(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "stages.training.ranks":
            return None
        spec = super().find_spec(name, path, target)
        spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        join = module.join
        def fail(workers):
            if os.environ["MLX_RANK"] == "1":
                os._exit(9)
            return join(workers)
        module.join = fail

sys.meta_path.insert(0, Failing)
"""


@pytest.mark.slow
def test_one_that_does_not_come_ends_all(tmp_path: Path) -> None:
    """A process that ends before it has met the others: the run ends with its reason."""
    (tmp_path / "sitecustomize.py").write_text(FAILS)
    paths = os.pathsep.join([str(tmp_path), str(cli.ROOT)])
    done = cli.run(tmp_path, *LONG, TOGETHER, PYTHONPATH=paths)
    assert done.returncode == 70, done.stderr
    assert "the worker ended with code 9" in done.stderr
    assert not list((tmp_path / "outputs/store").glob("train/*"))
