"""The command line from its words to its exit code; the run itself is a stand-in of lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Stands for the runner: measures rank/10, and fails in a different way for each of some ranks.
RUNNER = """
import logging
from dataclasses import asdict
from pipeline import execution
from pipeline.errors import Interrupted, Refused, Unable

def execute(config, *, directory, command, parent=None, study=None, trial=None):
    ends = {
        3: Refused("data.path:7", "no messages in it", "mend the row"),
        5: Unable("memory", "not enough of it", "choose a smaller model"),
        6: Interrupted(2),
        7: RuntimeError("oops"),
    }
    if error := ends.get(config.lora.rank):
        raise error
    seen = {"config": asdict(config), "command": command, "trial": trial}
    seen["parent"] = str(parent.directory) if parent else None
    (directory / "run.json").write_text(json.dumps(seen))
    logging.getLogger("pipeline").info("working on it")
    metrics = {"valid.loss": config.lora.rank / 10, "valid.odd": float("nan")}
    return execution.Outcome(directory=directory, status="succeeded", metrics=metrics)

execution.execute = execute
"""


@pytest.fixture
def run(commands):
    """Run command lines with the stand-in for the runner."""

    def go(*lines: str, cwd: Path | None = None):
        ended = commands(*(line.split() for line in lines), cwd=cwd, before=RUNNER)
        return ended if len(ended) > 1 else ended[0]

    return go


def seen(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text())


def test_help_shows_groups_and_fits_a_terminal(commands):
    """--help names every group with its options, in 80 columns, on one screen, without MLX."""
    [end] = commands(["--help"])
    assert end.code == 0
    assert re.search(r"^optimizer: .*adamw.*sgd", end.out, re.MULTILINE)
    assert re.search(r"^model: .*tiny", end.out, re.MULTILINE)
    assert all(len(line) <= 80 for line in end.out.splitlines())
    assert len(end.out.splitlines()) <= 36
    assert (end.err, end.made, end.mlx) == ("", [], False)


@pytest.mark.parametrize(
    "line", ["--cfg job", "--hydra-help", "--info defaults", "--version", "--cfg hydra"]
)
def test_flags_that_only_show_write_nothing(commands, line):
    """What only shows something succeeds and leaves the directory empty."""
    [end] = commands(line.split())
    assert (end.code, end.made, end.mlx) == (0, [], False)
    assert end.out


def test_cfg_shows_the_given_values(commands):
    """--cfg job is the configuration with the overrides in it."""
    [end] = commands(["--cfg", "job", "lora.rank=5", "-p", "lora"])
    assert "rank: 5\n" in end.out


def test_a_run_gets_a_directory_and_the_command_that_made_it(run):
    """One run: a directory under its name, its log with times, its words recorded."""
    end = run("name=trip lora.rank=2")
    assert (end.code, end.err) == (0, "")
    [directory] = (end.cwd / "outputs" / "runs" / "trip").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-\d{6}", directory.name)
    assert sorted(f.name for f in directory.iterdir()) == ["pipeline.log", "run.json"]
    assert seen(directory)["command"] == ["python", "-m", "pipeline", "name=trip", "lora.rank=2"]
    assert seen(directory)["trial"] is None
    assert end.out == "working on it\n"
    log = (directory / "pipeline.log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO working on it\n", log)


def test_errors_exit_with_their_code(run):
    """Data 1, environment 3, interruption 130, a bug 70 with its traceback; stdout stays clean."""
    data, memory, stop, bug = run("lora.rank=3", "lora.rank=5", "lora.rank=6", "lora.rank=7")
    assert (data.code, data.err) == (1, "error: data.path:7: no messages in it\n  mend the row\n")
    assert (memory.code, memory.err.splitlines()[0]) == (3, "error: memory: not enough of it")
    assert (stop.code, stop.err.splitlines()[0][:12]) == (130, "interrupted:")
    assert bug.code == 70
    assert bug.err.startswith("Traceback")
    assert "RuntimeError: oops" in bug.err
    assert "please report it" in bug.err
    for end in (data, memory, stop, bug):
        assert end.out == ""


def test_a_run_refused_before_its_record_leaves_nothing(run):
    """A directory that Hydra made for nothing is gone again, with the empty ones above it."""
    assert run("lora.rank=3").made == []


def test_a_sweep_tries_everything_and_says_what_was_best(run):
    """-m: one directory per trial, a table, the best one's command, the sweep's directory."""
    end = run("-m lora.rank=8,2 seed=1,2 train.epochs=1")
    assert (end.code, end.err) == (0, "")
    [sweep] = (end.cwd / "outputs" / "sweeps" / "default").iterdir()
    trials = {d.name: seen(d)["config"] for d in sweep.iterdir() if d.is_dir()}
    pairs = {name: (c["lora"]["rank"], c["seed"]) for name, c in trials.items()}
    assert pairs == {"0": (8, 1), "1": (8, 2), "2": (2, 1), "3": (2, 2)}
    assert seen(sweep / "2")["trial"] == 2
    lines = end.out.splitlines()
    assert "trial 2: lora.rank=2 seed=1" in lines
    [best] = [line for line in lines if line.startswith("2  ")]
    assert re.fullmatch(r"2 +lora.rank=2 seed=1 +succeeded +0.2000 +best *", best)
    assert lines[-1] == f"sweep: outputs/sweeps/default/{sweep.name}"
    again = "python -m pipeline lora.rank=2 seed=1 train.epochs=1"
    assert lines[-2] == f"best: trial 2, again by: {again}"
    assert seen(sweep / "2")["command"] == again.split()


def test_a_failed_trial_does_not_lose_the_others(run):
    """Failures are said, listed and decide the exit code; every other trial is run."""
    end = run("-m lora.rank=3,4,5,2")
    assert end.code == 3
    assert end.err.count("error: ") == 2
    rows = [line.split()[1:4] for line in end.out.splitlines() if re.match(r"\d  ", line)]
    assert rows == [
        ["lora.rank=3", "failed", "-"],
        ["lora.rank=4", "succeeded", "0.4000"],
        ["lora.rank=5", "failed", "-"],
        ["lora.rank=2", "succeeded", "0.2000"],
    ]
    assert "best: trial 3" in end.out


def test_an_interruption_ends_the_sweep(run):
    """Ctrl-C during a trial: no further trial, the finished ones listed, exit code 130."""
    end = run("-m lora.rank=2,6,4")
    assert end.code == 130
    assert "lora.rank=4" not in end.out
    assert re.search(r"^1 +lora.rank=6 +interrupted", end.out, re.MULTILINE)
    assert end.out.splitlines()[-1].startswith("sweep: ")


def test_a_sweep_of_nothing_is_one_trial(run):
    """-m without alternatives runs once."""
    end = run("-m lora.rank=2")
    assert end.code == 0
    assert "best: trial 0, again by: python -m pipeline lora.rank=2" in end.out


def test_an_objective_that_was_not_measured_has_no_best(run):
    """A metric that no trial has, or that is not a number, is shown as a dash."""
    end = run("-m lora.rank=2,4 objective=valid.odd")
    assert end.code == 0
    assert "best" not in end.out
    assert len(re.findall(r"succeeded +-", end.out)) == 2


def test_a_dry_run_writes_nothing(commands, tmp_path):
    """dry_run=true, alone or for each trial of a sweep, plans without a trace and without MLX."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    one = ["dry_run=true", f"data.path={rows}"]
    single, sweep = commands(one, ["-m", "lora.rank=2,4", *one])
    for end in (single, sweep):
        assert (end.code, end.err, end.made, end.mlx) == (0, "", [], False)
        assert "never made" in end.out
    assert re.findall(r"^trial \d: lora.rank=\d", sweep.out, re.MULTILINE) == [
        "trial 0: lora.rank=2",
        "trial 1: lora.rank=4",
    ]


def test_stop_before_the_worker_is_there_reaches_it(commands) -> None:
    """Ctrl-C while the worker is being started ends the run before a stage has begun."""
    before = """
import signal
import pipeline.runner
start = pipeline.runner.WorkerProcess
def stopped(log, model_path):
    os.kill(os.getpid(), signal.SIGINT)
    return start(log, model_path)
pipeline.runner.WorkerProcess = stopped
"""
    (ended,) = commands(["stages=[prepare]"], before=before)
    assert ended.code == 130
    assert ended.out == ""


def test_download_ends_when_it_is_interrupted(commands, tmp_path: Path) -> None:
    """Ctrl-C during a download of minutes does not wait for it, and is no failure."""
    before = """
import signal, time
from pipeline import hub
def slow(model, source, say):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
hub.download = slow
"""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    words = ["model=local", f"model.path={model}", "stages=[prepare]"]
    (ended,) = commands(words, before=before)
    assert ended.code == 130
    (record,) = ended.cwd.glob("outputs/runs/*/*/run.json")
    assert json.loads(record.read_text())["status"] == "interrupted"


def test_deleted_working_directory_is_no_bug(commands) -> None:
    """Where the shell stands in a directory that is gone, two lines say so, exit code 3."""
    (ended,) = commands([], before="os.chdir = lambda cwd, go=os.chdir: (go(cwd), os.rmdir(cwd))")
    assert ended.code == 3
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 2


def test_stop_during_the_imports_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C before the command line was even read ends with its code, not with a traceback."""
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")
