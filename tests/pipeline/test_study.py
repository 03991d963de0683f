"""A search tries what Optuna suggests, loses no trial, and goes on where it ended."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from hydra import compose
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pipeline import schema
from pipeline.compose import opened
from pipeline.search import StudySweeper

ROOT = Path(__file__).parents[2]
RATE = "optimizer.learning_rate"

# Stands for the runner: the loss is least at a rate of 1e-3, and some ranks end differently.
RUNNER = """
import math, time
from dataclasses import asdict
from pipeline import execution
from pipeline.errors import Interrupted, Unable
from pipeline.record import RunRecord

def execute(config, *, directory, command, parent=None, study=None, trial=None):
    ends = {13: Unable("worker", "killed"), 14: Interrupted(2), 15: RuntimeError("oops")}
    with RunRecord.start(directory, config=asdict(config), command=command, model={},
                         environment={}, study=study, trial=trial) as record:
        if error := ends.get(config.lora.rank):
            raise error
        while config.lora.rank == 18:
            time.sleep(0.01)
        loss = (math.log10(config.optimizer.learning_rate) + 3) ** 2 + 0.5
        record._fields["metrics"]["valid.loss"] = math.nan if config.lora.rank == 17 else loss
        return execution.Outcome(directory=directory, status="succeeded", metrics=record.metrics)

execution.execute = execute
"""
PRELOADED = f"import pipeline.search\n{RUNNER}"

FIRST = {
    "plain": "-m sweeper=tpe sweeper.trials=4",
    "stopped": "-m sweeper=tpe sweeper.trials=3 seed=3",
    "whole": "-m sweeper=tpe sweeper.trials=7 seed=3",
    "given": f"-m sweeper=random sweeper.trials=3 {RATE}=interval(1e-3,2e-3) lora.rank=5 "
    "lora.alpha=8,9 train.steps=int(interval(1,9)) train.batch_size=range(2,9,2)",
    "failing": "-m sweeper=random sweeper.trials=12 lora.rank=4,13,15,17",
    "interrupted": "-m sweeper=random sweeper.trials=4 lora.rank=4,14",
    "misnamed": "-m sweeper=tpe sweeper.trials=3 objective=valid.los",
    "fruitless": "-m sweeper=tpe sweeper.trials=2 lora.rank=13,15",
}
SECOND = {
    "plain": "-m sweeper=tpe sweeper.trials=4",
    "stopped": "-m sweeper=tpe sweeper.trials=7 seed=3",
    "given": "-m sweeper=random sweeper.trials=4",
    "interrupted": "-m sweeper=random sweeper.trials=4 lora.rank=4,14",
    "misnamed": "-m sweeper=tpe sweeper.trials=2 objective=valid.loss",
    "fruitless": "-m sweeper=tpe sweeper.trials=2 lora.rank=4,8",
}


class Search(NamedTuple):
    """How the sessions of one search ended, and where its results lie."""

    outputs: Path
    first: object
    second: object

    @property
    def study(self) -> optuna.Study:
        """The study, as any program that knows Optuna loads it."""
        file = self.outputs / "studies" / "default.log"
        storage = JournalStorage(JournalFileBackend(str(file)))
        return optuna.load_study(study_name="default", storage=storage)

    @property
    def runs(self) -> dict[int, dict]:
        """The record of each trial, by the name of its directory."""
        files = self.outputs.glob("sweeps/*/*/*/run.json")
        found = [(int(file.parent.name), json.loads(file.read_text())) for file in files]
        assert len(found) == len(dict(found)), "two trials have one number"
        return dict(sorted(found))


@pytest.fixture(scope="module")
def searches(commands, tmp_path_factory) -> dict[str, Search]:
    """Searches of one session or two."""
    root = tmp_path_factory.mktemp("searches")

    def run(lines: dict[str, str]) -> dict:
        given = [f"{line} outputs={root / name}".split() for name, line in lines.items()]
        return dict(zip(lines, commands(*given, before=PRELOADED), strict=True))

    first, second = run(FIRST), run(SECOND)
    return {name: Search(root / name, first[name], second.get(name)) for name in FIRST}


def table(out: str) -> list[list[str]]:
    """Return number, status, objective and mark of each line of the closing table."""
    rows = [line.split() for line in out.splitlines() if re.match(r"\d+  ", line)]
    return [[row[0], *(word for word in row[1:] if "=" not in word)] for row in rows]


def params(trials: list[FrozenTrial]) -> list[dict]:
    return [trial.params for trial in trials]


def test_a_search_records_study_and_trial(searches):
    """Each trial has its number in the study as directory and in run.json, with the study's file;
    what it tried and what came out are the study's."""
    search = searches["plain"]
    assert (search.first.code, search.first.err) == (0, "")
    study, runs = search.study, search.runs
    assert list(runs) == [0, 1, 2, 3] == [trial.number for trial in study.trials]
    for trial, record in zip(study.trials, runs.values(), strict=True):
        assert record["study"] == str(search.outputs / "studies" / "default.log")
        assert record["trial"] == trial.number
        assert record["config"]["optimizer"]["learning_rate"] == trial.params[RATE]
        assert record["config"]["lora"]["rank"] == int(trial.params["lora.rank"])
        assert record["metrics"]["valid.loss"] == trial.value
    rows = table(search.first.out)
    assert [row[0] for row in rows if "best" in row] == [str(study.best_trial.number)]
    assert [row[2] for row in rows] == [f"{trial.value:.4f}" for trial in study.trials]


def test_the_default_space(searches):
    """Without values of one's own: the learning rate over three decades, and four ranks."""
    expected = {
        RATE: FloatDistribution(1e-5, 1e-2, log=True),
        "lora.rank": CategoricalDistribution(("4", "8", "16", "32")),
    }
    assert all(trial.distributions == expected for trial in searches["plain"].study.trials)


def test_given_values_replace_the_default_ones(searches):
    """A key with values or a range is searched there, one with a single value not at all."""
    search = searches["given"]
    expected = {
        RATE: FloatDistribution(1e-3, 2e-3),
        "lora.alpha": CategoricalDistribution(("8", "9")),
        "train.steps": IntDistribution(1, 9),
        "train.batch_size": IntDistribution(2, 8, step=2),
    }
    assert all(trial.distributions == expected for trial in search.study.trials)
    assert {record["config"]["lora"]["rank"] for record in search.runs.values()} == {5}


def test_a_continued_search_equals_one_never_stopped(searches):
    """3, then 7 trials: no number and no suggestion twice, the same as 7 at once."""
    continued, whole = searches["stopped"], searches["whole"]
    assert [len(table(end.out)) for end in (continued.first, continued.second)] == [3, 7]
    assert "3 made before" in continued.second.out
    assert params(continued.study.trials) == params(whole.study.trials)
    assert len({tuple(each.values()) for each in params(whole.study.trials)}) == 7
    assert list(continued.runs) == list(range(7))


def test_suggestions_follow_the_seed(searches):
    """Another seed tries other values."""
    assert params(searches["plain"].study.trials[:1]) != params(searches["whole"].study.trials[:1])


def test_a_finished_search_runs_nothing(searches):
    """The same command again shows the trials, makes none, and no directory."""
    search = searches["plain"]
    assert search.second.code == 0
    assert table(search.second.out) == table(search.first.out)
    assert search.second.out.splitlines()[-1] == f"study: {search.outputs / 'studies/default.log'}"
    assert len(list((search.outputs / "sweeps" / "default").iterdir())) == 1


def test_the_best_of_all_sessions_is_named_with_its_command(searches, commands):
    """The best trial's command is a single run of the same configuration, with the same loss."""
    search = searches["stopped"]
    best = search.study.best_trial
    [line] = [line for line in search.second.out.splitlines() if line.startswith("best: ")]
    said = re.fullmatch(r"best: trial (\d+), again by: python -m pipeline (.*)", line)
    assert said
    assert int(said[1]) == best.number
    [alone] = commands(said[2].split(), before=RUNNER)
    assert alone.code == 0, alone.err
    [file] = search.outputs.glob("runs/default/*/run.json")
    record = json.loads(file.read_text())
    assert record["metrics"]["valid.loss"] == best.value
    assert record["config_digest"] == search.runs[best.number]["config_digest"]


def test_a_failed_trial_does_not_lose_the_others(searches):
    """Killed for lack of memory, a bug, a loss that is not finite: failed in table and study."""
    search = searches["failing"]
    ranks = [each["lora.rank"] for each in params(search.study.trials)]
    assert set(ranks) == {"4", "13", "15", "17"}, "the seed decides which are tried"
    expected = ["succeeded" if rank == "4" else "failed" for rank in ranks]
    states = {TrialState.COMPLETE: "succeeded", TrialState.FAIL: "failed"}
    assert [states[trial.state] for trial in search.study.trials] == expected
    assert [row[1] for row in table(search.first.out)] == expected
    assert search.first.code == 70
    assert "killed" in search.first.err
    assert "oops" in search.first.err


def test_an_interrupted_trial_is_tried_again(searches):
    """Ctrl-C: exit code 130, nothing left running; the next session tries the same once more."""
    search = searches["interrupted"]
    assert (search.first.code, search.second.code) == (130, 130)
    *done, stopped, last = search.study.trials
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * len(done)
    assert (stopped.state, last.state) == (TrialState.FAIL, TrialState.FAIL)
    assert last.params == stopped.params
    assert table(search.first.out)[-1] == [str(stopped.number), "interrupted", "-"]
    assert list(search.runs) == list(range(last.number + 1))


def test_a_metric_that_nothing_measures_ends_the_search(searches):
    """After one trial without the objective the search ends with what was meant."""
    search = searches["misnamed"]
    assert search.first.code == 1
    assert "did you mean valid.loss?" in search.first.err
    assert len(table(search.first.out)) == 1


@pytest.mark.parametrize("name", ["misnamed", "fruitless"])
def test_a_study_without_a_success_makes_room(searches, name):
    """Where no trial succeeded yet, a mended command needs no new name."""
    search = searches[name]
    assert search.second.code == 0, search.second.err
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 2


def test_another_search_needs_another_name(searches):
    """A study holds trials that can be compared: other settings or values are refused."""
    end = searches["given"].second
    assert end.code == 1
    assert "holds another search: other values of lora.alpha" in end.err
    assert "name=default-2" in end.err
    assert len(end.err.splitlines()) <= 3
    assert len(searches["given"].study.trials) == 3


def test_a_killed_search_leaves_no_trial_behind(commands, tmp_path):
    """After kill -9 the running trial counts as interrupted, and its turn is taken again."""
    words = ["-m", "sweeper=random", "sweeper.trials=1", f"{RATE}=1e-3", f"outputs={tmp_path}"]
    code = f"{RUNNER}\nimport pipeline.app\npipeline.app.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "lora.rank=18,18"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("sweeps/*/*/0/run.json")):
        assert process.poll() is None
        time.sleep(0.02)
    [refused] = commands([*words, "lora.rank=4,5"])
    assert refused.code == 1, "it is at work on another search"
    process.kill()
    process.wait()
    [end] = commands([*words, "lora.rank=4,5"], before=RUNNER)
    search = Search(tmp_path, end, None)
    assert end.code == 0, end.err
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE]


def test_two_processes_share_a_study(commands, tmp_path):
    """Two sessions at once make the wanted number of trials together, each its own."""
    words = ["-m", "sweeper=random", "sweeper.trials=6", f"outputs={tmp_path}"]
    ends = commands(words, words, before=PRELOADED)
    assert [end.code for end in ends] == [0, 0]
    search = Search(tmp_path, *ends)
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 6
    assert list(search.runs) == [0, 1, 2, 3, 4, 5]
    assert len({tuple(each.values()) for each in params(search.study.trials)}) == 6


def test_a_damaged_study_is_refused(commands, tmp_path):
    """A file that is no journal of Optuna is named, and nothing is run."""
    file = tmp_path / "studies" / "default.log"
    file.parent.mkdir()
    file.write_text('{"op_code": 0}\nnonsense\n')
    [end] = commands(["-m", "sweeper=tpe", f"outputs={tmp_path}"])
    assert end.code == 1
    assert end.err.startswith(f"error: {file}: not a study that can be read")
    assert not (tmp_path / "sweeps").exists()


def sweeper(option: str) -> StudySweeper:
    schema.register()
    with opened(None, "config"):
        config = compose("config", [f"sweeper={option}", "seed=7"], return_hydra_config=True)
        OmegaConf.resolve(config.hydra.sweeper)
        return StudySweeper(sampler=config.hydra.sweeper.sampler, params=None)


def test_tpe_has_the_improvements_of_optuna_5():
    """Multivariate and constant liar, as Optuna's own default has them, not as the plugin's."""
    built, default = sweeper("tpe")._sampler(0), optuna.samplers.TPESampler()
    study = optuna.create_study()
    assert type(built) is optuna.samplers.TPESampler
    assert built._is_multivariate(study) is default._is_multivariate(study) is True
    assert built._constant_liar is default._constant_liar is True


def test_random_is_random():
    """sweeper=random draws independently."""
    assert type(sweeper("random")._sampler(0)) is optuna.samplers.RandomSampler


def test_later_trials_learn_from_earlier_ones():
    """A new sampler for each turn learns all the same: TPE ends nearer to the best than random."""
    losses = {}
    for option in ("tpe", "random"):
        built, study = sweeper(option), optuna.create_study()
        for turn in range(40):
            study.sampler = built._sampler(turn)
            trial = study.ask({RATE: FloatDistribution(1e-5, 1e-2, log=True)})
            study.tell(trial, (math.log10(trial.params[RATE]) + 3) ** 2)
        losses[option] = statistics.median(trial.value for trial in study.trials[20:])
    assert losses["tpe"] < 0.5 * losses["random"]


def test_optuna_is_imported_for_a_search_only(tmp_path):
    """--help and a single run start without Optuna."""
    for words in (["--help"], ["-m", "lora.rank=2,4", "dry_run=true"]):
        code = "import sys, atexit, pipeline.app\n"
        code += "atexit.register(lambda: print('optuna' in sys.modules, file=sys.stderr))\n"
        code += "pipeline.app.main()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "False\n")


REFUSED = [
    ("-m sweeper=tpe sweeper.trials=0", "sweeper.trials", "found 0, expected at least 1"),
    ("-m sweeper=tpe sweeper.trials=null", "sweeper.trials", "set sweeper.trials=20"),
    ("-m sweeper=tpe sweeper.trials=q", "sweeper.trials", "expected a whole number"),
    ("-m sweeper=tpe sweeper.trials=2,4", "sweeper.trials", "a sweep has one value"),
    ("-m sweeper=tpe objective=tuned.valid.exact_match", "objective", "more is better"),
    ("-m sweeper=tpe objective=tuned.valid.slot_f1", "objective", "more is better"),
    ("-m sweeper=tpe,random", "sweeper", "a sweep has one value"),
    ("-m sweeper=tpe objective=valid.loss,valid.odd", "objective", "a sweep has one value"),
    (f"-m sweeper=tpe lora.rank=4 {RATE}=1e-4", "sweeper", "found nothing to search"),
    ("-m sweeper.trials=4 lora.rank=2,4", "sweeper.trials", "sweeper=tpe or sweeper=random"),
    ("sweeper=tpe", "sweeper", "add -m: python -m pipeline -m sweeper=tpe"),
    ("sweeper.trials=4", "sweeper.trials", "add -m"),
    ("-m lora.alpha=interval(2,4)", "lora.alpha", "or search: sweeper=tpe"),
    ("-m sweeper=tpe lora.rank=interval(2,4)", "lora.rank", "'lora.rank=int(interval(2,4))'"),
    ("-m sweeper=tpe lora.rank=int(interval(4,2))", "lora.rank", "low <= high"),
    ("-m sweeper=tpe lora.rank=int(interval(0,2))", "lora.rank", "found 0, expected at least 1"),
    ("-m sweeper=tpe lora.rank=range(4,4)", "lora.rank", "no value"),
    ("-m sweeper=tpe hydra.sweeper.n_trials=3", "hydra.sweeper.n_trials", "no such key"),
]


@pytest.fixture(scope="module")
def ends(commands):
    """Every refused command line, run once."""
    lines = [line.split() for line, _, _ in REFUSED]
    return dict(zip([line for line, _, _ in REFUSED], commands(*lines), strict=True))


@pytest.mark.parametrize(("line", "where", "said"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_refused_before_anything_is_written(ends, line, where, said):
    """What cannot be searched is refused in three lines, with what mends it and no trace."""
    end = ends[line]
    assert end.code == 1, end.err
    assert end.err.startswith(f"error: {where}: ")
    assert said in end.err
    assert len(end.err.splitlines()) <= 3
    assert (end.out, end.made) == ("", [])


def test_a_dry_run_of_a_search_writes_nothing(commands):
    """dry_run=true says what is searched and plans one trial."""
    [end] = commands(["-m", "sweeper=tpe", "dry_run=true"])
    assert (end.code, end.err, end.made) == (0, "", [])
    assert end.out.startswith(f"search: 20 trials over {RATE}=tag(log,interval(1e-5,1e-2)) ")
    assert end.out.count("never made") <= 6


def test_keys_that_the_options_do_not_use_are_not_searched(commands, tmp_path):
    """Of a sweeper's own ranges those for keys that are null are left out; others are refused."""
    options = tmp_path / "mine" / "sweeper"
    options.mkdir(parents=True)
    (options / "wide.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /hydra/sweeper: study\n"
        "sweeper:\n  trials: 1\n"
        "hydra:\n  sweeper:\n    params:\n"
        "      optimizer.momentum: interval(0.5,0.9)\n      lora.rank: null\n"
    )
    base = ["--config-dir", str(tmp_path / "mine"), "-m", "sweeper=wide", f"outputs={tmp_path}"]
    adamw, sgd = commands([*base, "name=adamw"], [*base, "name=sgd", "optimizer=sgd"],
                          before=PRELOADED)  # fmt: skip
    assert (adamw.code, sgd.code) == (0, 0), adamw.err + sgd.err
    assert "momentum" not in adamw.out
    assert "optimizer.momentum=0." in sgd.out
