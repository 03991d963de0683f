"""A search with Optuna, as a person runs, stops and continues it."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import cli
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import load_study
from optuna.trial import FrozenTrial

QUICK = (*(word for word in cli.QUICK if word != "lora.rank=2"), cli.TRAIN)
RATE = "optimizer.learning_rate"


def trials(cwd: Path) -> list[FrozenTrial]:
    """Return the trials that the study holds."""
    file = cwd / "outputs" / "studies" / "default.log"
    storage = JournalStorage(JournalFileBackend(str(file)))
    return load_study(study_name="default", storage=storage).trials


def states(cwd: Path) -> list[str]:
    return [trial.state.name for trial in trials(cwd)]


def trained(process: subprocess.Popen[str], cwd: Path, number: int) -> None:
    """Wait until that trial's first training step is recorded."""
    while not any(
        "train.loss" in file.read_text()
        for file in cwd.glob(f"outputs/sweeps/*/*/{number}/metrics.jsonl")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_search_prepares_once_and_names_a_command_that_repeats_the_best(tmp_path: Path) -> None:
    """Two trials share model and rows; the best one's command trains nothing again."""
    done = cli.run(tmp_path, "-m", "sweeper=tpe", "sweeper.trials=2", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(tmp_path.glob("outputs/sweeps/default/*/*/run.json"))
    records = {int(file.parent.name): cli.record(file.parent) for file in files}
    assert cli.statuses(records[0]) == {"prepare": "ran", "train": "ran"}
    assert cli.statuses(records[1]) == {"prepare": "reused", "train": "ran"}
    best = min(trials(tmp_path), key=lambda trial: trial.value)
    assert best.value == records[best.number]["metrics"]["valid.loss"]
    said = re.search(r"^best: trial (\d), again by: python -m pipeline (.*)", done.stdout, re.M)
    assert said
    assert int(said[1]) == best.number
    _, again = cli.succeed(tmp_path, *shlex.split(said[2]))
    assert cli.statuses(again) == {"prepare": "reused", "train": "reused"}
    assert again["metrics"] == records[best.number]["metrics"]


def test_diverged_trial_does_not_lose_the_others(tmp_path: Path) -> None:
    """A loss that is not finite fails its trial, with a reason; every other one is tried."""
    words = ("optimizer=sgd", f"{RATE}=0.1,1e+38", "lora.rank=2", "train.batch_size=2,4")
    done = cli.run(tmp_path, "-m", "sweeper=random", "sweeper.trials=3", *QUICK, *words)
    rates = [trial.params[RATE] for trial in trials(tmp_path)]
    assert set(rates) == {"0.1", "1e+38"}, "the seed decides which are tried"
    assert states(tmp_path) == ["FAIL" if rate == "1e+38" else "COMPLETE" for rate in rates]
    assert done.returncode == 1
    assert "loss is nan" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_worker_fails_its_trial_only(tmp_path: Path) -> None:
    """Kill -9 of one trial's worker: it is failed with the reason, and the next one succeeds."""
    words = ("-m", "sweeper=random", "sweeper.trials=2", *QUICK, "train.steps=25")
    process = cli.start(tmp_path, *words)
    trained(process, tmp_path, 0)
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    for child in found.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "memory" in err
    assert states(tmp_path) == ["FAIL", "COMPLETE"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_search_continues_to_its_total(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped in its second trial, the same command tries that one again and goes on to three."""
    words = ("-m", "sweeper=random", "sweeper.trials=3", *QUICK, "train.steps=25")
    process = cli.start(tmp_path, *words)
    trained(process, tmp_path, 1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    done = cli.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    made = trials(tmp_path)
    assert made[1].params == made[2].params != made[3].params
    directories = {file.parent.name for file in tmp_path.glob("outputs/sweeps/*/*/*/run.json")}
    assert directories == {"0", "1", "2", "3"}


def test_search_from_a_run_takes_over_its_configuration(finished) -> None:
    """run=R gives what is not searched; its rows are not prepared again."""
    words = ("sweeper.trials=1", cli.TRAIN, "lora.rank=3,5", f"{RATE}=1e-3", "name=again")
    done = cli.run(finished.cwd, "-m", "sweeper=tpe", f"run={finished.directory}", *words)
    assert done.returncode == 0, done.stderr
    [file] = finished.cwd.glob("outputs/sweeps/again/*/0/run.json")
    record = cli.record(file.parent)
    assert record["parent"]
    assert record["config"]["train"] == finished.record["config"]["train"]
    assert record["config"]["lora"]["rank"] in (3, 5)
    assert cli.statuses(record) == {"prepare": "reused", "train": "ran"}
