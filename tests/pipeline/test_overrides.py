"""Words of a command line mean one thing, whatever stands in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.compose import Composer, opened
from pipeline.overrides import quoted, read
from pipeline.spelling import closest, closest_keys

# `${` begins a reference to another key, which is meant to be one.
TEXT = st.text(st.characters(exclude_categories=("C",), exclude_characters="$"), max_size=30)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    schema.register()
    with opened(None, "config") as opened_composer:
        yield opened_composer


@given(rank=st.integers(), rate=FINITE, path=TEXT, nesterov=st.booleans(), seed=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_values_come_back_as_they_were_given(composer, rank, rate, path, nesterov, seed):
    """Numbers, booleans and any text survive being written as words and composed."""
    values = {
        "lora.rank": rank,
        "optimizer.learning_rate": rate,
        "data.path": path,
        "optimizer.nesterov": nesterov,
        "seed": seed,
    }
    words = [f"{k}={quoted(v) if isinstance(v, str) else v}" for k, v in values.items()]
    config = composer.compose(read(words, composer.loader, sweeping=False)).config
    found = {
        "lora.rank": config.lora.rank,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "data.path": config.data.path,
        "optimizer.nesterov": config.optimizer.nesterov,
        "seed": config.seed,
    }
    assert found == values


@given(st.permutations(["lora.rank=2", "lora=rslora", "optimizer=sgd", "optimizer.momentum=0.5"]))
@settings(max_examples=24, deadline=None)
def test_values_win_over_options_in_any_order(composer, words):
    """An option replaces its group first, whatever the order; then values are set."""
    config = composer.compose(read(words, composer.loader, sweeping=False)).config
    assert (config.lora.type, config.lora.rank) == ("rslora", 2)
    assert (config.optimizer.name, config.optimizer.momentum) == ("sgd", 0.5)


def test_the_last_of_two_values_wins(composer):
    """A key given twice has its last value."""
    words = read(["lora.rank=2", "lora.rank=3"], composer.loader, sweeping=False)
    assert composer.compose(words).config.lora.rank == 3


def test_one_composition_does_not_leak_into_the_next(composer):
    """Values given to one configuration are not in the next one of the same options."""
    for rank in (2, 3):
        words = read([f"lora.rank={rank}"], composer.loader, sweeping=False)
        assert composer.compose(words).config.lora.rank == rank
    words = read([], composer.loader, sweeping=False)
    assert composer.compose(words).config.lora.rank == 16


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lora.rnak", ["lora.rank"]),
        ("rank", ["lora.rank"]),
        ("path", ["data.path", "model.path"]),
        ("train.rank", ["lora.rank"]),
        ("lr", ["optimizer.learning_rate"]),
        ("lrate.rank", ["lora.rank"]),
        ("zzz", []),
    ],
)
def test_nearest_keys(word, meant):
    """A key is found by its last part, its initials or its likeness."""
    known = ["lora.rank", "data.path", "model.path", "optimizer.learning_rate", "model"]
    assert closest_keys(word, known) == meant


def test_nothing_is_suggested_for_what_resembles_nothing():
    """Far-fetched suggestions are worse than none."""
    assert closest("qwen", ["tiny", "local"]) is None
    assert closest("tiyn", ["tiny", "local"]) == "tiny"
