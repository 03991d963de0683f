from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.rows import Rows, write_rows
from stages.settings import Train
from stages.training.batches import (
    collate,
    count_steps,
    deal,
    dropout_keys,
    input_width,
    training_steps,
    validation_batches,
)

ROWS = Callable[..., Rows]
SETTINGS = Callable[..., Train]
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(2, 400, 101)]


@given(st.lists(st.integers(2, 700), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_every_row_is_dealt_once(lengths: list[int], rows_per_step: int, epoch: int) -> None:
    """An epoch holds each row exactly once, the tail included, in steps of the asked size."""
    steps = deal(lengths, rows_per_step, 3, epoch)
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    short = [len(step) for step in steps if len(step) != rows_per_step]
    assert short == ([len(lengths) % rows_per_step] if len(lengths) % rows_per_step else [])


def test_order_depends_on_seed_and_epoch() -> None:
    """The same seed and epoch deal the same; another seed or epoch deals otherwise."""
    assert deal(LENGTHS, 4, 0, 1) == deal(LENGTHS, 4, 0, 1)
    assert deal(LENGTHS, 4, 0, 1) != deal(LENGTHS, 4, 0, 2)
    assert deal(LENGTHS, 4, 0, 1) != deal(LENGTHS, 4, 1, 1)


def test_rows_of_similar_length_meet_others_in_every_epoch() -> None:
    """Buckets are dealt anew: over 8 epochs of equal lengths a row has many different partners."""
    partners: set[int] = set()
    for epoch in range(8):
        for step in deal([20] * 100, 4, 0, epoch):
            if 0 in step:
                partners |= set(step)
    assert len(partners) > 16


def test_steps_do_not_run_from_short_to_long() -> None:
    """Steps come in random order of length."""
    widths = [input_width(LENGTHS[step[0]]) for step in deal(LENGTHS, 4, 0, 0)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_micro_batches_share_the_same_steps(make_rows: ROWS, settings: SETTINGS) -> None:
    """1x8, 2x4 and 8x1 have the same rows in the same order in every step."""
    rows = make_rows(LENGTHS)
    steps = [
        [step.rows for step in training_steps(rows, settings(
            epochs=2, batch_size=size, grad_accumulation_steps=8 // size), 5)]
        for size in (1, 2, 8)
    ]  # fmt: skip
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 26), ({"epochs": 2}, 52), ({"steps": 7}, 7), ({"steps": 60}, 60)],
)
def test_run_has_the_steps_that_are_counted(
    make_rows: ROWS, settings: SETTINGS, changes: dict[str, int], expected: int
) -> None:
    """101 rows by 4 are 26 steps an epoch; `steps` counts whatever the epochs, beyond them too."""
    rows = make_rows([5] * 101)
    steps = list(training_steps(rows, settings(**changes), 0))
    assert count_steps(rows, settings(**changes)) == (26, expected)
    assert [step.number for step in steps] == list(range(expected))
    assert [step.epoch for step in steps] == [number // 26 for number in range(expected)]


def test_batch_holds_the_rows_and_supervises_no_padding(make_rows: ROWS) -> None:
    """Rows stand at the left, the rest is zero and not supervised, the width fits the longest."""
    rows = make_rows([2, 33, 34, 60])
    batch = collate(rows, [3, 0, 1])
    assert batch.tokens.shape == (3, 65)
    for place, index in enumerate(batch.rows):
        tokens, supervised = rows[index]
        np.testing.assert_array_equal(batch.tokens[place, : len(tokens)], tokens)
        np.testing.assert_array_equal(batch.supervised[place, : len(tokens)], supervised)
        assert not batch.tokens[place, len(tokens) :].any()
        assert not batch.supervised[place, len(tokens) :].any()
    assert batch.input_tokens == 59 + 1 + 32
    assert batch.padded_tokens == 3 * 64
    assert batch.supervised_tokens == 30 + 1 + 17


def test_width_is_that_of_the_input() -> None:
    """A row's last token is never put in: 33 tokens are an input of 32, 34 one of 64."""
    assert [input_width(n) for n in (1, 2, 33, 34, 65, 66)] == [32, 32, 32, 64, 64, 96]


def test_first_token_is_no_target(tmp_path: Path) -> None:
    """A row whose first token is flagged has one target less."""
    write_rows(tmp_path / "all.safetensors", [(np.arange(5, dtype=np.int32), np.ones(5, np.uint8))])
    assert collate(Rows(tmp_path / "all.safetensors"), [0]).supervised_tokens == 4


def test_buckets_pad_far_less_than_random_batches(make_rows: ROWS) -> None:
    """On 400 rows of skewed lengths padding beyond the multiple of 32 is under 2 %."""
    lengths = np.clip(np.random.default_rng(1).lognormal(4.5, 0.8, 400), 4, 700).astype(int)
    rows = make_rows(lengths.tolist())
    batches = [collate(rows, step) for step in deal(lengths.tolist(), 4, 0, 0)]
    rounded = sum(input_width(int(length)) for length in lengths)
    assert sum(batch.padded_tokens for batch in batches) < 1.02 * rounded


def test_validation_is_the_same_every_time(make_rows: ROWS) -> None:
    """Every row once, the tail included, in the same batches, shortest first."""
    rows = make_rows(LENGTHS)
    first, second = ([batch.rows for batch in validation_batches(rows, 8)] for _ in range(2))
    order = [row for part in first for row in part]
    assert first == second
    assert sorted(order) == list(range(101))
    assert [LENGTHS[row] for row in order] == sorted(LENGTHS)


def test_dropout_keys_belong_to_the_row() -> None:
    """A row has one key in an epoch, wherever it stands; every epoch and row has another."""
    keys = dropout_keys(0, 1, [4, 9])
    np.testing.assert_array_equal(dropout_keys(0, 1, [9, 7])[0], keys[1])
    every = [dropout_keys(seed, epoch, range(50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(np.unique(np.concatenate(every), axis=0)) == 200
