"""Every option composes, and what a configuration means is typed and complete."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

import conf
from pipeline import schema
from pipeline.compose import opened
from pipeline.configure import configure
from pipeline.errors import Refused
from pipeline.overrides import read
from pipeline.schema import KEYS, Config, expected
from stages.settings import GROUPS, from_values

CONF = Path(conf.__file__).parent
COMPOSED = {spec.name for spec in fields(Config)} | {"experiment"}
OPTIONS = sorted(
    (f.parent.name, f.stem) for f in CONF.glob("*/*.yaml") if f.parent.name in COMPOSED
)
NEEDED = {
    "model=local": "model.path=tiny",
    "data=local": "data.path=samples",
    "data=hub": "data.path=samples",
    "experiment=snips": "data.path=samples",
    "experiment=pretrain_tiny": "data.path=samples",
}


def settled(*words: str) -> Config:
    """Compose and validate the configuration of a command line."""
    schema.register()
    with opened(None, "config") as composer:
        given = read(words, composer.loader, sweeping=False)
        return configure(composer.compose(given), given, composer)[0]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_validates(group, option, monkeypatch):
    """Each option of each group gives a whole configuration, once its mandatory path is given."""
    monkeypatch.chdir(CONF.parent)
    chosen = f"{group}={option}"
    config = settled(chosen, *filter(None, [NEEDED.get(chosen)]))
    assert isinstance(config, Config)


@pytest.mark.parametrize("option", sorted(file.stem for file in CONF.glob("sweeper/*.yaml")))
def test_every_sweeper_composes(option):
    """Each sweeper chooses a sweeper of Hydra and leaves the rest of the configuration as it is."""
    config = settled(f"sweeper={option}")
    assert (config.sweeper.trials is None) == (option == "grid")
    assert replace(config, sweeper=settled().sweeper) == settled()


def test_an_experiment_overrides_values_and_the_command_line_overrides_it():
    """experiment=smoke names its runs and shortens training; a given key still wins."""
    config = settled("experiment=smoke", "lora.alpha=5")
    assert (config.name, config.lora.rank, config.lora.alpha) == ("smoke", 4, 5.0)
    assert config.train.steps == 20


def test_snips_scores_every_validation_row(monkeypatch):
    """experiment=snips holds out nothing of its own and draws no sample of the benchmark's rows."""
    monkeypatch.chdir(CONF.parent)
    config = settled("experiment=snips", "data.path=samples")
    assert (config.evaluate.rows, config.data.test_fraction, config.data.duplicates) == (
        None, 0.0, "keep",
    )  # fmt: skip
    assert config.data.convert == "stages/data/samples/snips.py:command"


def test_the_default_recipe():
    """Defaults: every linear layer, rank 16, scale 2, AdamW with warm-up and cosine to a tenth."""
    config = settled()
    assert config.stages == ("prepare", "train", "merge", "evaluate")
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (16, 32.0, ("*",))
    assert (config.optimizer.name, config.optimizer.schedule) == ("adamw", "cosine")
    assert config.optimizer.final_fraction == pytest.approx(0.1)
    assert config.optimizer.learning_rate == "auto"


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "muon", "adafactor"])
def test_the_learning_rate_is_a_number_or_worked_out(optimizer):
    """Adam's recipes work theirs out, the others bring a number; a given number is a float."""
    found = settled(f"optimizer={optimizer}").optimizer.learning_rate
    assert isinstance(found, str) == (optimizer in ("adamw", "adam"))
    given = settled(f"optimizer={optimizer}", "optimizer.learning_rate=1").optimizer
    assert (given.learning_rate, type(given.learning_rate)) == (1.0, float)
    assert settled("optimizer.learning_rate=1e-4").optimizer.learning_rate == 1e-4


def test_a_constant_schedule_is_one_override():
    """optimizer.schedule=constant needs nothing beside it, and uses no final fraction."""
    assert settled("optimizer.schedule=constant").optimizer.final_fraction is None
    assert settled("optimizer.final_fraction=0.3").optimizer.final_fraction == pytest.approx(0.3)


def test_values_become_the_types_of_the_schema():
    """Lists become tuples, whole numbers floats where a float is asked for."""
    config = settled("lora.targets=[q_proj,v_proj]", "lora.alpha=8", "name=3", "stages=[train]")
    assert config.lora.targets == ("q_proj", "v_proj")
    assert isinstance(config.lora.alpha, float)
    assert (config.name, config.stages) == ("3", ("train",))


def test_a_mapping_and_a_list_are_set_whole():
    """data.columns takes names of the user's own, data.path one entry or several."""
    config = settled("data.columns={user: question, assistant: 'the answer'}")
    assert config.data.columns == {"user": "question", "assistant": "the answer"}
    assert settled("data.columns=null").data.columns is None
    mixed = settled("data.path=[samples,samples]", "data.weights=[1,0.5]").data
    assert (mixed.path, mixed.weights) == (("samples", "samples"), (1.0, 0.5))


def test_a_value_may_refer_to_another_key():
    """`lora.alpha=${lora.rank}` follows the rank that is given beside it."""
    assert settled("lora.alpha=${lora.rank}", "lora.rank=6").lora.alpha == 6.0


def test_plain_values_make_the_same_settings_again():
    """What is recorded of a configuration rebuilds each group as it was."""
    words = ("lora.targets=[q_proj]", "optimizer=muon", "data.columns={text: body}")
    recorded = asdict(settled(*words))
    for group in GROUPS:
        if group in recorded:
            built = from_values(group, recorded[group])
            assert asdict(built) == recorded[group]


def test_every_key_says_what_it_takes():
    """Each key of the schema has words for the values it takes."""
    assert all(expected(key) for key in KEYS)
    assert expected("lora.rank") == "a whole number or null"
    assert expected("train.epochs") == "a whole number"
    assert expected("dry_run") == "true or false"
    assert expected("optimizer.learning_rate") == "a number or auto"
    assert expected("optimizer.betas") == "2 numbers in a list or null"
    assert expected("data.path") == "text or a list such as [a,b]"
    assert expected("data.columns") == "a mapping such as {a: b} or null"
    assert expected("model.dtype") == "one of float32, bfloat16, float16 or null"


def test_own_options_come_from_config_dir(tmp_path):
    """An option file in --config-dir is chosen like one of ours."""
    schema.register()
    (tmp_path / "experiment").mkdir()
    recipe = "# @package _global_\ndefaults:\n  - override /optimizer: lion\nseed: 5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(recipe)
    with opened(str(tmp_path), "config") as composer:
        words = read(["experiment=mine"], composer.loader, sweeping=False)
        config, _ = configure(composer.compose(words), words, composer)
    assert (config.seed, config.optimizer.name) == (5, "lion")


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    """outputs below a file is refused before anything is made."""
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="is a file, expected a directory"):
        settled(f"outputs={tmp_path / 'file' / 'below'}")


def test_a_model_directory_without_config_is_refused(tmp_path):
    """A local model must at least have its config.json."""
    with pytest.raises(Refused, match=r"no config\.json"):
        settled(f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    assert settled(f"model.path={tmp_path}").model.path == str(tmp_path)
