"""`run=R`: the recorded configuration plus what is given now, in a new directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline import schema
from pipeline.compose import Composer, opened
from pipeline.configure import configure
from pipeline.errors import Refused
from pipeline.overrides import read
from pipeline.parent import Parent
from pipeline.schema import Config

RECORDED = (
    "name=trip",
    "seed=7",
    "optimizer=lion",
    "lora=rslora",
    "lora.dropout=0.25",
    "train.epochs=5",
)


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    schema.register()
    with opened(None, "config") as opened_composer:
        yield opened_composer


def settle(composer: Composer, *words: str) -> tuple[Config, Parent | None]:
    given = read(words, composer.loader, sweeping=False)
    return configure(composer.compose(given), given, composer)


def record(directory: Path, config: dict, **fields: object) -> Path:
    """Write the run.json of a finished run, by its documented fields."""
    directory.mkdir(parents=True)
    stages = {name: {"key": f"{name}-key", "status": "ran", "seconds": 1.0}
              for name in ("prepare", "train")}  # fmt: skip
    whole = {
        "format": 1,
        "status": "succeeded",
        "name": config["name"],
        "config": config,
        "config_digest": "0" * 64,
        "command": [],
        "parent": None,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "stages": stages,
        "model": {"key": "model-key"},
        "metrics": {},
        "environment": {},
        **fields,
    }
    (directory / "run.json").write_text(json.dumps(whole))
    return directory


@pytest.fixture
def recorded(composer, tmp_path) -> Path:
    """A run under `<tmp>/outputs/runs/trip/`."""
    config, _ = settle(composer, *RECORDED)
    return record(tmp_path / "outputs/runs/trip/20260101-000000-000000", asdict(config))


def test_a_recorded_mapping_is_read_and_replaced_whole(composer, tmp_path):
    """data.columns of the parent is taken as it is, or gives way to the one given now."""
    config, _ = settle(composer, "data.columns={user: question, assistant: answer}")
    run = record(tmp_path / "outputs/runs/trip/1", asdict(config))
    again, _ = settle(composer, f"run={run}")
    assert again.data.columns == {"user": "question", "assistant": "answer"}
    other, _ = settle(composer, f"run={run}", "data.columns={text: body}")
    assert other.data.columns == {"text": "body"}
    without, _ = settle(composer, f"run={run}", "data=conversations")
    assert without.data.columns is None


def test_without_overrides_the_configuration_is_the_recorded_one(composer, recorded):
    """Everything but run and outputs is as recorded; the parent brings its keys."""
    config, parent = settle(composer, f"run={recorded}")
    before, _ = settle(composer, *RECORDED)
    before.run = str(recorded)
    assert config == before
    assert parent is not None
    assert parent.directory == recorded
    assert parent.keys == {"prepare": "prepare-key", "train": "train-key"}


def test_a_value_replaces_its_key_alone(composer, recorded):
    """One key changes; the options of the recorded run stay."""
    config, _ = settle(composer, f"run={recorded}", "lora.rank=3", "name=other")
    assert (config.lora.rank, config.lora.type, config.lora.dropout) == (3, "rslora", 0.25)
    assert (config.name, config.seed, config.optimizer.name) == ("other", 7, "lion")


def test_an_option_replaces_its_group(composer, recorded):
    """A given option brings its own values; values given beside it win over them."""
    config, _ = settle(composer, f"run={recorded}", "lora=lora", "lora.alpha=5")
    fresh, _ = settle(composer, "lora=lora", "lora.alpha=5")
    assert config.lora == fresh.lora
    assert config.optimizer.name == "lion"


def test_a_value_is_judged_by_the_recorded_option(composer, recorded):
    """Lion has no eps, even if the default optimizer has one."""
    with pytest.raises(Refused, match="lion") as refused:
        settle(composer, f"run={recorded}", "optimizer.eps=1e-6")
    assert refused.value.where == "optimizer.eps"


def test_references_follow_the_recorded_values(composer, recorded):
    """`${lora.rank}` is the recorded rank, not the default one."""
    config, _ = settle(composer, f"run={recorded}", "lora.alpha=${lora.rank}")
    assert config.lora.alpha == config.lora.rank == 64


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (["stages=[prepare]", "lora.rank=4"], "lora.rank", "only read by train"),
        (["stages=[prepare]", "lora=lora"], "lora", "only read by train"),
        (["stages=[train]", "data.max_seq_length=64"], "data.max_seq_length", "read by prepare"),
        (["stages=[train]", "model=tiny"], "model", "decides what prepare made"),
        (["stages=[train]", "model.revision=x"], "model.revision", "decides what prepare made"),
        (["experiment=smoke"], "experiment", "cannot be combined"),
    ],
)  # fmt: skip
def test_a_key_that_would_change_nothing_is_refused(composer, recorded, words, where, said):
    """Keys read only by steps whose results are taken from the parent are refused."""
    with pytest.raises(Refused) as refused:
        settle(composer, f"run={recorded}", *words)
    assert refused.value.where == where
    assert said in refused.value.found


@pytest.mark.parametrize(
    "words",
    [
        ["stages=[train]", "seed=8"],
        ["stages=[train]", "model.dtype=bfloat16"],
        ["stages=[prepare]", "data.max_seq_length=64", "model.dtype=float16"],
        ["stages=[train]", "objective=valid.loss", "name=x"],
    ],
)
def test_a_key_that_a_selected_step_reads_is_taken(composer, recorded, words):
    """The dtype decides no token, the seed also shuffles batches: both may change for train."""
    config, _ = settle(composer, f"run={recorded}", *words)
    assert config.stages == (words[0].partition("[")[2].rstrip("]"),)


def test_vanished_data_does_not_stop_a_later_step(composer, recorded, tmp_path):
    """With only train selected the rows are in the store; with prepare they must be there."""
    fields = json.loads((recorded / "run.json").read_text())
    fields["config"]["data"]["path"] = str(tmp_path / "gone.jsonl")
    (recorded / "run.json").write_text(json.dumps(fields))
    settle(composer, f"run={recorded}", "stages=[train]")
    with pytest.raises(Refused, match="no file or folder"):
        settle(composer, f"run={recorded}")


def test_keys_of_another_version_are_named(composer, recorded):
    """A record with unknown or missing keys is refused by those keys; missing ones can be given."""
    fields = json.loads((recorded / "run.json").read_text())
    del fields["config"]["train"]["log_every"]
    (recorded / "run.json").write_text(json.dumps(fields))
    with pytest.raises(Refused, match=r"existed: train\.log_every"):
        settle(composer, f"run={recorded}")
    config, _ = settle(composer, f"run={recorded}", "train.log_every=3")
    assert config.train.log_every == 3
    fields["config"]["lora"]["magic"] = 1
    (recorded / "run.json").write_text(json.dumps(fields))
    with pytest.raises(Refused, match=r"does not have: lora\.magic"):
        settle(composer, f"run={recorded}", "train.log_every=3")


# Stands for the runner: says what it was given, and makes a newer run that `latest` then means.
RUNNER = """
from dataclasses import asdict
from pathlib import Path
import shutil
from pipeline import execution

def execute(config, *, directory, command, parent=None, study=None, trial=None):
    seen = {"config": asdict(config), "command": command, "parent": str(parent.directory)}
    (directory / "run.json").write_text(json.dumps(seen))
    newer = Path("outputs/runs/newer/20990101-000000-000000")
    if not newer.exists():
        shutil.copytree(parent.directory, newer)
    return execution.Outcome(directory=directory, status="succeeded", metrics={})

execution.execute = execute
"""


def test_a_rerun_gets_a_new_directory_under_the_recorded_name(commands, recorded):
    """The new directory stands beside the old one, unless another name is given."""
    cwd = recorded.parents[3]
    [end] = commands(["run=latest", "train.epochs=1"], cwd=cwd, before=RUNNER)
    assert end.code == 0, end.err
    [new] = [d for d in recorded.parent.iterdir() if d != recorded]
    seen = json.loads((new / "run.json").read_text())
    assert (seen["config"]["name"], seen["config"]["train"]["epochs"]) == ("trip", 1)
    assert Path(seen["parent"]) == recorded
    assert f"run='{recorded}'" in seen["command"]
    shutil.rmtree(cwd / "outputs/runs/newer")
    [end] = commands(["run=latest", "name=trip2"], cwd=cwd, before=RUNNER)
    assert (end.code, "no run named trip2" in end.err) == (1, True)


def test_a_sweep_from_a_run_keeps_to_that_run(commands, recorded):
    """Every trial starts from the run that `latest` meant when the sweep began."""
    cwd = recorded.parents[3]
    [end] = commands(["-m", "run=latest", "lora.rank=2,4"], cwd=cwd, before=RUNNER)
    assert end.code == 0, end.err
    found = [json.loads(f.read_text()) for f in cwd.glob("outputs/sweeps/trip/*/*/run.json")]
    assert {Path(seen["parent"]) for seen in found} == {recorded}
    assert {seen["config"]["lora"]["rank"] for seen in found} == {2, 4}
