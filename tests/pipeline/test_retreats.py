"""Training that ran out of memory is planned in smaller batches, under keys of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import keys, schema
from pipeline.compose import opened
from pipeline.configure import configure
from pipeline.errors import OutOfMemory, Refused
from pipeline.keys import Plan
from pipeline.overrides import read
from pipeline.retreats import FORMAT, follow, note_path, retreat, split
from pipeline.schema import Config
from pipeline.store import Store

LACK = OutOfMemory("memory", "the stage ran out of memory", "lower it")


@pytest.fixture(scope="module")
def config() -> Config:
    schema.register()
    with opened(None, "config") as composer:
        given = read(["train.batch_size=6"], composer.loader, sweeping=False)
        return configure(composer.compose(given), given, composer)[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def limited(config: Config, limit: str | None) -> Config:
    return replace(config, train=replace(config.train, memory_limit=limit))


def keyed(plan: Plan) -> dict[str, str]:
    return {planned.step.name: planned.key for planned in plan.steps}


def commit(store: Store, key: str) -> None:
    staging = store.stage_directory("train", key)
    (staging / "adapters.safetensors").write_bytes(b"weights")
    store.commit(staging, "train", key, ingredients={}, metrics={}, seconds=1.0)


def test_split_is_the_configuration_with_that_split(config: Config) -> None:
    """The keys of a retreat to 3 rows are those of a run with 3 rows and 2 passes: all that takes
    the training's result, and nothing before it, has another key."""
    plan = keys.make(config, None)
    smaller = replace(config.train, batch_size=3, grad_accumulation_steps=2)
    found = split(plan, config.train, 3)
    assert found.train == smaller
    assert keyed(found) == keyed(keys.make(replace(config, train=smaller), None))
    changed = {name for name, key in keyed(plan).items() if keyed(found)[name] != key}
    assert changed == {"train", "merge", "evaluate"}
    assert keyed(split(found, config.train, 6)) == keyed(plan)


def test_limit_is_no_part_of_the_key(config: Config) -> None:
    """What is trained without a retreat does not depend on the limit."""
    assert keyed(keys.make(limited(config, "6GB"), None)) == keyed(keys.make(config, None))


def test_retreat_is_followed_from_then_on(config: Config, store: Store) -> None:
    """Each lack of memory takes the largest part that is at most half; later plans begin there."""
    plan = follow(keys.make(config, None), config, store)
    for size in (3, 1):
        plan = retreat(plan, config, store, LACK)
        assert plan.train.batch_size == size
        assert plan.train.batch_size * plan.train.grad_accumulation_steps == 6
        assert follow(keys.make(config, None), config, store) == plan
    (note,) = (store.root / ".retreats").iterdir()
    assert note.stem == keyed(keys.make(config, None))["train"]
    assert json.loads(note.read_bytes())["format"] == FORMAT


def test_nothing_is_smaller_than_one_row(config: Config, store: Store) -> None:
    """The last lack of memory ends the run, with exit code 3 and what is left to change."""
    plan = split(keys.make(config, None), config.train, 1)
    with pytest.raises(OutOfMemory) as caught:
        retreat(plan, config, store, LACK)
    assert caught.value.exit_code == 3
    assert "one row at a time" in caught.value.found
    assert "data.max_seq_length" in caught.value.mend
    assert "train.gradient_checkpointing=true" in caught.value.mend
    assert "batch_size" not in caught.value.mend
    over = OutOfMemory("train.memory_limit", "training held 7 GiB", "")
    with pytest.raises(OutOfMemory, match=r"^train\.memory_limit: .* raise train\.memory_limit"):
        retreat(plan, config, store, over)
    assert not (store.root / ".retreats").exists()


@pytest.mark.parametrize(
    ("noted", "now", "followed"),
    [
        (None, None, True),
        (None, "6GB", True),
        ("6GB", "6GB", True),
        ("6GB", "6000000000", True),
        ("6GB", "5GB", True),
        ("6GB", "7GB", False),
        ("6GB", None, False),
    ],
)
def test_more_memory_is_tried_anew(
    config: Config, store: Store, noted: str | None, now: str | None, followed: bool
) -> None:
    """A retreat binds whoever has no more than there was; a limit that was raised does not."""
    retreat(keys.make(config, None), limited(config, noted), store, LACK)
    found = follow(keys.make(config, None), limited(config, now), store)
    assert found.train.batch_size == (3 if followed else 6)


def test_retreats_of_several_limits_are_kept(config: Config, store: Store) -> None:
    """Each limit has its own, and the smallest that binds counts."""
    plan = retreat(keys.make(config, None), limited(config, "6GB"), store, LACK)
    retreat(plan, limited(config, "4GB"), store, LACK)
    sizes = [follow(keys.make(config, None), limited(config, limit), store).train.batch_size
             for limit in ("7GB", "6GB", "5GB", "4GB", "3GB")]  # fmt: skip
    assert sizes == [6, 3, 3, 1, 1]


def test_result_that_is_there_is_taken(config: Config, store: Store) -> None:
    """What was trained as configured, elsewhere or before, needs no memory."""
    plan = keys.make(config, None)
    retreat(plan, config, store, LACK)
    commit(store, keyed(plan)["train"])
    assert follow(plan, config, store) == plan


def test_damaged_note_costs_another_try(config: Config, store: Store) -> None:
    """Half a note is passed over and replaced; one of a newer format is refused by its name."""
    plan = keys.make(config, None)
    retreat(plan, config, store, LACK)
    path = note_path(plan, config, store)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"[]", b'{"format": 1, "retreats": [1]}'):
        path.write_bytes(damaged)
        assert follow(plan, config, store) == plan
    path.write_bytes(b'{"format": 99}')
    with pytest.raises(Refused, match="format 99"):
        follow(plan, config, store)


def test_plan_without_training_is_left_alone(config: Config, store: Store) -> None:
    """A run that only prepares has no batch to halve."""
    plan = keys.make(replace(config, stages=("prepare",)), None)
    assert follow(plan, config, store) == plan
