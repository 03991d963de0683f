from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from stages.data.rows import Rows
from stages.errors import SettingError, StageError, StopRequested
from stages.lora.bank import Bank, attach, initial
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training import loop
from stages.training.batches import collate, training_steps
from stages.training.head import UNCUT
from stages.training.loop import State, fit, take_step, validation_loss
from stages.training.loss import batch_arrays, row_losses
from stages.training.step import compile_losses, tuned_cut
from stages.training_settings import Optimizer, Train

LLAMA = Callable[..., Any]
ROWS = Callable[..., Rows]
ADAMW = Callable[..., Optimizer]
SETTINGS = Callable[..., Train]
LENGTHS = [9, 40, 14, 70, 12, 25, 33, 6, 51, 18, 22]


def fresh(model: Any, dropout: float = 0.0) -> Bank:
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0, dropout)])
    bank.update(bank.join([initial(bank.layers, 4, 0)]))
    return bank


def base_loss(model: Any, rows: Rows) -> float:
    """Compute the mean loss of the supervised tokens row by row, without padding."""
    total, count = 0.0, 0
    for index in range(len(rows)):
        total += row_losses(model, UNCUT, batch_arrays(collate(rows, [index]))).item()
        count += int(rows[index][1].sum())
    return total / count


def test_evaluating_and_logging_change_nothing_that_is_trained(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """Other cadences and other validation rows leave every loss and norm bit by bit the same."""
    rows = make_rows(LENGTHS)
    courses = []
    for validations, log_every, lengths in ((1, 1, [12, 30]), (3, 4, [50]), (2, 9, [])):
        report = recorder()
        train = settings(epochs=2, validations_per_epoch=validations, log_every=log_every)
        valid = make_rows(lengths, name=f"valid{validations}")
        fit(fresh(tiny_llama(), 0.1), rows, valid, optimizer=adamw(), train=train, seed=0,
            report=report)  # fmt: skip
        courses.append([report.values(f"train.{name}") for name in ("loss", "grad_norm")])
    assert len(courses[0][0]) == 6
    assert courses[0] == courses[1] == courses[2]


def test_best_adapter_is_the_one_with_the_lowest_validation_loss(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """Training on noise first lowers, then raises the validation loss: what is kept is the lowest,
    with exactly the weights that had it."""
    rows, valid = make_rows(LENGTHS), make_rows([12, 30, 44], seed=1, name="valid")
    model = tiny_llama()
    bank, report = fresh(model), recorder()
    optimizer = adamw(learning_rate=2e-2, schedule="constant", final_fraction=None)
    best, metrics = fit(
        bank, rows, valid, optimizer=optimizer, train=settings(epochs=8, validations_per_epoch=3),
        seed=0, report=report,
    )  # fmt: skip
    losses = report.values("valid.loss")
    assert len(losses) == 1 + 8 * 3
    assert min(losses[1:]) < losses[-1]
    assert metrics["valid.loss"] == min(losses[1:])
    steps = [step for step, values in report.rows if "valid.loss" in values]
    assert metrics["train.best_step"] == steps[losses.index(min(losses[1:]))]
    bank.update(bank.join([best]))
    found = validation_loss(
        compile_losses(bank, tuned_cut(bank)), bank.parameters(), valid, 4, recorder()
    )
    assert found == pytest.approx(metrics["valid.loss"], rel=1e-6)
    assert sum(line.endswith("best") for line in report.lines) >= 1


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_training_where_the_losses_say(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS,
    patience: int,
) -> None:  # fmt: skip
    """It ends after the first so many validations above the lowest; until then every loss and
    learning rate is bit by bit that of the run without patience, which goes on to the end."""
    rows, valid = make_rows(LENGTHS), make_rows([12, 30, 44], seed=1, name="valid")
    results = []
    for given in (None, patience):
        report = recorder()
        train = settings(epochs=8, validations_per_epoch=3, patience=given)
        best, metrics = fit(fresh(tiny_llama()), rows, valid, optimizer=adamw(learning_rate=5e-2),
                            train=train, seed=0, report=report)  # fmt: skip
        results.append((best, metrics, report))
    (_, whole, long), (best, metrics, short) = results
    losses = long.values("valid.loss")[1:]
    since = [n - losses.index(min(losses[: n + 1])) for n in range(len(losses))]
    end = since.index(patience) + 1
    assert end < len(losses) == 24
    assert short.values("valid.loss")[1:] == losses[:end]
    assert (metrics["train.steps"], metrics["train.stopped_early"]) == (end, 1)
    for name in ("train.loss", "train.grad_norm", "train.learning_rate"):
        assert short.values(name) == long.values(name)[:end]
    assert metrics["valid.loss"] == min(losses[:end])
    assert metrics["train.best_step"] == end - patience
    assert sum("stopped early" in line for line in short.lines) == 1
    assert "train.stopped_early" not in whole


def test_patience_that_lasts_to_the_end_stops_nothing(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """A run whose last validation uses the patience up was not stopped early."""
    report = recorder()
    train = settings(epochs=1, validations_per_epoch=3, patience=2)
    rows, valid = make_rows(LENGTHS), make_rows([12], name="valid")
    _, metrics = fit(fresh(tiny_llama()), rows, valid, optimizer=adamw(learning_rate=1e-12),
                     train=train, seed=0, report=report)  # fmt: skip
    assert (metrics["train.steps"], metrics["train.stopped_early"]) == (3, 0)
    assert not any("stopped early" in line for line in report.lines)


def test_patience_without_validation_rows_is_refused(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """Nothing would ever end such a run early; the message names the key and the mend."""
    with pytest.raises(SettingError, match=r"train\.patience: found 3, .*data\.valid_fraction"):
        fit(fresh(tiny_llama()), make_rows(LENGTHS), make_rows([], name="valid"),
            optimizer=adamw(), train=settings(patience=3), seed=0, report=recorder())  # fmt: skip


def test_validation_before_training_is_that_of_the_base(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """valid.loss_before is the mean over the tokens of the split, rows of any length together."""
    valid = make_rows([5, 70, 12, 33, 9], seed=1, name="valid")
    expected = base_loss(tiny_llama(), valid)
    report = recorder()
    _, metrics = fit(
        fresh(tiny_llama()), make_rows(LENGTHS), valid, optimizer=adamw(), train=settings(),
        seed=0, report=report,
    )  # fmt: skip
    assert metrics["valid.loss_before"] == pytest.approx(expected, rel=1e-5)
    assert report.rows[0] == (0, {"valid.loss": metrics["valid.loss_before"]})


def test_without_validation_rows_the_last_adapter_is_kept(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """No valid.* metric is made up, the log says it, and one more step gives another adapter."""
    rows, none = make_rows(LENGTHS), make_rows([], name="valid")
    results = []
    for steps in (3, 4):
        report = recorder()
        best, metrics = fit(
            fresh(tiny_llama()), rows, none, seed=0, report=report,
            optimizer=adamw(schedule="constant", final_fraction=None, warmup_fraction=0.0),
            train=settings(steps=steps),
        )  # fmt: skip
        assert metrics["train.best_step"] == metrics["train.steps"] == steps
        assert not any(name.startswith("valid") for name in metrics)
        assert "no validation rows: the last adapter is kept" in report.lines
        results.append(dict(tree_flatten(best)))
    assert all(not mx.array_equal(value, results[1][name]) for name, value in results[0].items())


def test_gradient_checkpointing_changes_only_the_memory(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """The adapter is that of a run without it, and the model is as it was afterwards."""
    rows, valid = make_rows(LENGTHS), make_rows([12], name="valid")
    found, kinds = [], []
    for checkpointing in (False, True):
        tuning = fresh(tiny_llama())
        train = settings(epochs=2, batch_size=2, gradient_checkpointing=checkpointing)
        best, _ = fit(tuning, rows, valid, optimizer=adamw(), train=train, seed=0,
                      report=recorder())  # fmt: skip
        found.append(dict(tree_flatten(best)))
        kinds.append([type(block) for block in tuning.model.layers])
    for name, value in found[0].items():
        np.testing.assert_allclose(np.array(found[1][name]), np.array(value), rtol=1e-5, atol=1e-6)
    assert kinds[0] == kinds[1]


def test_metrics_count_what_was_computed(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: LLAMA, make_rows: ROWS, recorder: Any,
    adamw: ADAMW, settings: SETTINGS,
) -> None:  # fmt: skip
    """Tokens, padding, steps and the last epoch's mean agree with counts made by hand.

    The head of the model cannot be cut off, so that its rows are padded, not packed.
    """
    rows, valid = make_rows(LENGTHS), make_rows([12], name="valid")
    report, train = recorder(), settings(epochs=2, batch_size=2, grad_accumulation_steps=2)
    monkeypatch.setattr(loop, "tuned_cut", lambda _: UNCUT)
    _, metrics = fit(
        fresh(tiny_llama()), rows, valid, optimizer=adamw(), train=train, seed=0, report=report
    )
    supervised = [length - max(length // 2, 1) for length in LENGTHS]
    assert metrics["train.supervised_tokens"] == 2 * sum(supervised)
    assert metrics["train.steps"] == 6
    steps = list(training_steps(rows, train, 0))
    padded = sum(batch.inputs.size for step in steps for batch in step.batches)
    used = 2 * (sum(LENGTHS) - len(LENGTHS))
    assert metrics["train.padding_fraction"] == pytest.approx(1 - used / padded)
    weights = [sum(supervised[row] for row in step.rows) for step in steps[3:]]
    expected = np.average(report.values("train.loss")[3:], weights=weights)
    assert metrics["train.loss"] == pytest.approx(expected)
    assert metrics["train.tokens_per_second"] > 0


def test_every_step_is_reported_and_every_third_logged(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """Metrics and the live line move with each step; log lines keep train.log_every."""
    report = recorder()
    fit(fresh(tiny_llama()), make_rows(LENGTHS), make_rows([12], name="valid"), optimizer=adamw(),
        train=settings(batch_size=1, log_every=3), seed=0, report=report)  # fmt: skip
    assert [step for step, values in report.rows if "train.loss" in values] == list(range(1, 12))
    assert [(done, total) for done, total, _ in report.moves] == [(n, 11) for n in range(1, 12)]
    names = {"epoch", "epochs", "loss", "valid_loss", "tokens_per_second", "memory_bytes"}
    assert all(set(fields) == names for _, _, fields in report.moves)
    logged = [line.split("/")[0] for line in report.lines if "tokens/s" in line]
    assert logged == ["step  3", "step  6", "step  9"]


def test_validations_are_spread_over_the_epoch(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """Four validations of 11 steps stand after 3, 6, 9 and 11, in each epoch, and at the end."""
    report = recorder()
    fit(fresh(tiny_llama()), make_rows(LENGTHS), make_rows([12], name="valid"), optimizer=adamw(),
        train=settings(batch_size=1, steps=15, validations_per_epoch=4), seed=0,
        report=report)  # fmt: skip
    steps = [step for step, values in report.rows if "valid.loss" in values]
    assert steps == [0, 3, 6, 9, 11, 14, 15]


def test_asked_to_stop_it_stops_before_the_next_step(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """After two steps the request is seen and StopRequested raised; no third step is reported."""
    report = recorder(stop_after=2)
    with pytest.raises(StopRequested):
        fit(fresh(tiny_llama()), make_rows(LENGTHS), make_rows([], name="valid"),
            optimizer=adamw(), train=settings(batch_size=1), seed=0, report=report)  # fmt: skip
    assert len(report.values("train.loss")) == 2


def test_asked_to_stop_it_stops_within_a_validation(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """A request that is there from the start ends the run before anything is reported."""
    report = recorder(stop_after=0)
    with pytest.raises(StopRequested):
        fit(fresh(tiny_llama()), make_rows(LENGTHS), make_rows([12], name="valid"),
            optimizer=adamw(), train=settings(), seed=0, report=report)  # fmt: skip
    assert report.rows == []


def poisoned(model: Any, token: int) -> Any:
    """Make every row that holds `token` lose its numbers."""
    weight = model.model.embed_tokens.weight
    weight[token] = mx.array(math.nan)
    return model


def test_rows_without_a_finite_loss_are_named(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """The message names the step and the rows that hold the bad token, no others."""
    rows = make_rows(LENGTHS)
    model, report = tiny_llama(), recorder()
    bad = [index for index in range(len(rows)) if 7 in rows[index][0][:-1]]
    first = next(step for step in training_steps(rows, settings(), 0) if {*step.rows} & {*bad})
    expected = [row for row in first.rows if row in bad]
    with pytest.raises(StageError) as caught:
        fit(fresh(poisoned(model, 7)), rows, make_rows([], name="valid"), optimizer=adamw(),
            train=settings(), seed=0, report=report)  # fmt: skip
    assert str(caught.value) == (
        f"train step {first.number + 1}: loss is nan in rows {', '.join(map(str, expected))}; "
        "lower optimizer.learning_rate, or look at these rows"
    )
    assert len(report.values("train.loss")) == first.number


def test_gradient_that_is_not_finite_is_never_applied(
    tiny_llama: LLAMA, make_rows: ROWS, settings: SETTINGS
) -> None:
    """With finite losses and an infinite gradient the state stays as it was."""
    parameters = fresh(tiny_llama()).parameters()
    state = State(parameters, [])
    (step, *_) = training_steps(make_rows([9, 9]), settings(), 0)
    broken = tree_map(lambda value: mx.full(value.shape, math.inf), parameters)
    with pytest.raises(StageError, match=r"train step 1: gradient norm is inf in rows [01], [01]"):
        take_step(
            lambda *_: (mx.ones((2,)), broken),
            lambda *_: (broken, [], mx.array([math.inf])),
            state, step, [None], 1e-3,
        )  # fmt: skip
    assert state.parameters is parameters


def test_broken_validation_rows_are_named(
    tiny_llama: LLAMA, make_rows: ROWS, recorder: Any, adamw: ADAMW, settings: SETTINGS
) -> None:
    """A validation loss that is not a number stops the run and names its rows."""
    valid = make_rows([5, 60], seed=3, name="valid")
    token = next(int(t) for t in valid[1][0] if t not in valid[0][0])
    with pytest.raises(StageError, match="validation: loss is nan in rows 1;"):
        fit(fresh(poisoned(tiny_llama(), token)), make_rows(LENGTHS), valid, optimizer=adamw(),
            train=settings(), seed=0, report=recorder())  # fmt: skip
