from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.rows import Rows, write_rows
from stages.training.batches import (
    Layout,
    collate,
    count_steps,
    deal,
    dropout_keys,
    input_width,
    passes,
    training_steps,
    validation_batches,
)
from stages.training_settings import Train

ROWS = Callable[..., Rows]
SETTINGS = Callable[..., Train]
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(2, 400, 101)]


def flat(steps: list[list[list[int]]]) -> list[list[int]]:
    return [[row for part in step for row in part] for step in steps]


@given(st.lists(st.integers(2, 700), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_every_row_is_dealt_once(lengths: list[int], rows_per_step: int, epoch: int) -> None:
    """An epoch holds each row exactly once, the tail included, in steps of the asked size."""
    steps = flat(deal(lengths, rows_per_step, 3, epoch))
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    short = [len(step) for step in steps if len(step) != rows_per_step]
    assert short == ([len(lengths) % rows_per_step] if len(lengths) % rows_per_step else [])


def test_order_depends_on_seed_and_epoch() -> None:
    """The same seed and epoch deal the same; another seed or epoch deals otherwise."""
    assert deal(LENGTHS, 4, 0, 1) == deal(LENGTHS, 4, 0, 1)
    assert deal(LENGTHS, 4, 0, 1) != deal(LENGTHS, 4, 0, 2)
    assert deal(LENGTHS, 4, 0, 1) != deal(LENGTHS, 4, 1, 1)


def test_rows_of_similar_length_meet_others_in_every_epoch() -> None:
    """Steps are dealt anew: over 8 epochs of equal lengths a row has many different partners."""
    partners: set[int] = set()
    for epoch in range(8):
        for step in flat(deal([20] * 100, 4, 0, epoch)):
            if 0 in step:
                partners |= set(step)
    assert len(partners) > 16


def test_steps_do_not_run_from_short_to_long() -> None:
    """Steps come in random order of length."""
    widths = [LENGTHS[step[0]] for step in flat(deal(LENGTHS, 4, 0, 0))]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_last_step_is_of_any_length() -> None:
    """The rows that are left for a short last step are not always the longest."""
    left = [LENGTHS[deal(LENGTHS, 4, 0, epoch)[-1][0][0]] for epoch in range(8)]
    assert min(left) < 150 < 250 < max(left)


@pytest.mark.parametrize(("rows_per_step", "parts"), [(4, 2), (8, 4)])
def test_a_part_has_neighbours_of_its_window(rows_per_step: int, parts: int) -> None:
    """1,000 rows are dealt in windows of 25 steps or more, each sorted by itself."""
    lengths = np.random.default_rng(0).permutation(1000).tolist()
    steps = deal(lengths, rows_per_step, 0, 0)
    windows = len(steps) // 25
    assert windows == 40 // rows_per_step
    for window in np.array_split(np.arange(len(steps)), windows):
        found = [part for step in window for part in steps[step]]
        ranked = sorted(lengths[row] for part in found for row in part)
        by_length = sorted(found, key=lambda part: lengths[part[0]])
        assert [lengths[row] for part in by_length for row in part] == ranked
        assert {len(part) for part in found} == {2}
        assert {len(steps[step]) for step in window} == {parts}


def test_a_step_has_rows_of_every_length() -> None:
    """Each of its four parts lies in another quarter of the window, and meets others by chance."""
    lengths = list(range(200))
    steps = deal(lengths, 8, 0, 0)
    assert len(steps) == 25
    for step in steps:
        assert [part[0] // 50 for part in step] == pytest.approx([0, 1, 2, 3], abs=1)
    firsts, lasts = zip(*((step[0][0], step[3][0]) for step in steps), strict=True)
    assert abs(np.corrcoef(firsts, lasts)[0, 1]) < 0.5


def test_steps_have_about_the_same_tokens() -> None:
    """Their sums vary no more than those of random rows, by a fifth of their mean at most."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 100, 4000)
    dealt = [sum(lengths[step]) for step in flat(deal(lengths.tolist(), 8, 0, 0))]
    random = lengths[rng.permutation(4000)].reshape(-1, 8).sum(axis=1)
    assert np.std(dealt) <= np.std(random) < 0.2 * np.mean(random)


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 9),
    st.booleans(),
)
def test_passes_are_the_rows_of_the_step(
    parts: list[list[int]], batch_size: int, few_shapes: bool
) -> None:
    """In their order, at most `batch_size` together."""
    lengths = list(range(10, 110))
    found = passes(parts, lengths, batch_size, few_shapes)
    assert [row for rows in found for row in rows] == [row for part in parts for row in part]
    assert all(1 <= len(rows) <= batch_size for rows in found)


def test_parts_of_one_length_are_computed_together() -> None:
    """Joined where that pads next to nothing and a batch has room, else apart."""
    lengths = [101, 101, 102, 102, 120, 120]
    parts = [[0, 1], [2, 3], [4, 5]]
    assert passes(parts, lengths, 8, False) == [[0, 1, 2, 3], [4, 5]]
    assert passes(parts, lengths, 3, False) == parts
    assert passes([[0, 1], [0, 1], [0, 1]], lengths, 4, False) == [[0, 1, 0, 1], [0, 1]]


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


@pytest.mark.parametrize("few_shapes", [False, True])
def test_batch_holds_the_rows_and_supervises_no_padding(make_rows: ROWS, few_shapes: bool) -> None:
    """Rows stand at the left, the rest is zero; what is supervised is told by place and owner."""
    rows = make_rows([2, 33, 34, 100])
    batch = collate(rows, [3, 0, 1], few_shapes)
    width = 100 if few_shapes else 99
    assert batch.inputs.shape == (3, width)
    for place, index in enumerate(batch.rows):
        tokens, supervised = rows[index]
        np.testing.assert_array_equal(batch.inputs[place, : len(tokens) - 1], tokens[:-1])
        assert not batch.inputs[place, len(tokens) - 1 :].any()
        mine = batch.owners == place
        (predicted,) = np.nonzero(supervised[1:])
        np.testing.assert_array_equal(batch.positions[mine], place * width + predicted)
        np.testing.assert_array_equal(batch.targets[mine], tokens[1:][predicted])
    assert batch.input_tokens == 99 + 1 + 32
    assert batch.padded_tokens == 3 * width
    assert batch.supervised_tokens == 50 + 1 + 17
    filler = batch.owners == 3
    # 68 of 300 positions are filled up to two eighths.
    assert filler.sum() == (76 - 68 if few_shapes else 0)
    assert not batch.positions[filler].any()
    assert {batch.inputs.dtype, batch.positions.dtype, batch.targets.dtype} == {np.dtype(np.int32)}


def test_width_is_that_of_the_input() -> None:
    """A row's last token is never put in; few shapes are a sixteenth of a power of two apart."""
    assert [input_width(n) for n in (1, 2, 33, 34)] == [1, 1, 32, 33]
    found = [input_width(n, True) for n in (1, 2, 32, 33, 34, 65, 66, 98, 129, 130, 260, 1026)]
    assert found == [1, 1, 31, 32, 34, 64, 68, 100, 128, 136, 272, 1088]


@given(st.integers(2, 1 << 20))
def test_few_widths_are_close(length: int) -> None:
    """A rounded width is at least the input and at most a sixteenth more."""
    assert length - 1 <= input_width(length, True) <= (length - 1) * 17 / 16


def test_few_shapes_are_few(make_rows: ROWS) -> None:
    """Rows of up to 400 tokens have at most 16 widths per doubling, and eight counts for each."""
    rows = make_rows(np.random.default_rng(1).integers(2, 400, 600).tolist())
    few = {(batch.inputs.shape, len(batch.targets))
           for batch in validation_batches(rows, 4, Layout(few_shapes=True))}  # fmt: skip
    assert len({shape for shape, _ in few}) <= 32 + 16 * 4
    assert max(sum(shape == other for other, _ in few) for shape, _ in few) <= 8


def test_batch_without_a_target_has_a_place_for_none(tmp_path: Path) -> None:
    """Nothing supervised: one filler, no target counted."""
    pair = np.arange(5, dtype=np.int32), np.zeros(5, np.uint8)
    write_rows(tmp_path / "none.safetensors", [pair])
    batch = collate(Rows(tmp_path / "none.safetensors"), [0])
    assert batch.supervised_tokens == 0
    assert (batch.positions.tolist(), batch.owners.tolist()) == ([0], [1])


def test_first_token_is_no_target(tmp_path: Path) -> None:
    """A row whose first token is flagged has one target less."""
    write_rows(tmp_path / "all.safetensors", [(np.arange(5, dtype=np.int32), np.ones(5, np.uint8))])
    assert collate(Rows(tmp_path / "all.safetensors"), [0]).supervised_tokens == 4


# Percentiles of the lengths of WikiSQL and SNIPS, every fifth, in tokens of a 32,000 BPE.
WIKISQL = [47, 57, 61, 65, 67, 70, 73, 76, 78, 81, 83, 85, 88, 91, 94, 96, 100, 104, 108, 122, 232]
SNIPS = [27, 38, 41, 44, 46, 48, 50, 52, 54, 56, 57, 59, 61, 63, 64, 66, 69, 72, 76, 81, 132]


@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize(("percentiles", "count"), [(WIKISQL, 1000), (SNIPS, 5000)])
def test_padding_is_at_most_3_percent(
    percentiles: list[int], count: int, few_shapes: bool, batch_size: int
) -> None:
    """On rows as long as those of WikiSQL and of SNIPS, exact and in few shapes."""
    places = np.random.default_rng(0).uniform(0, 100, count)
    lengths = np.interp(places, np.arange(0, 101, 5), percentiles).astype(int).tolist()
    computed = 0
    for step in deal(lengths, batch_size, 0, 0):
        for together in passes(step, lengths, batch_size, few_shapes):
            width = input_width(max(lengths[row] for row in together), few_shapes)
            computed += len(together) * width
    assert 1 - sum(length - 1 for length in lengths) / computed <= 0.03


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
