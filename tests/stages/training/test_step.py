from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stages.data.rows import Rows
from stages.lora.bank import Bank, Parameters, attach, initial
from stages.lora.full import Tuning, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets
from stages.training import cross_entropy as cross_entropy_module
from stages.training import loss as loss_module
from stages.training import step as step_module
from stages.training.batches import Layout, collate, dropout_keys, training_steps
from stages.training.loop import State, take_step
from stages.training.loss import batch_arrays
from stages.training.step import compile_gradients, compile_update, initial_states, tuned_cut
from stages.training_settings import Optimizer, Train

LLAMA = Callable[..., Any]
SHAPES = [AdapterShape(2, 0.5), AdapterShape(5, 2.0, 0.2), AdapterShape(3, 1.25)]


def bank_of(model: Any, shapes: list[AdapterShape], seeds: list[int]) -> Bank:
    """Put adapters with something in lora_b on `model`: the same for the same seed."""
    bank = attach(model, find_targets(model, ["*"], None), shapes)
    adapters = []
    for shape, seed in zip(shapes, seeds, strict=True):
        adapter = initial(bank.layers, shape.rank, seed)
        rng = np.random.default_rng(seed)
        for weights in adapter.values():
            weights["lora_b"] = mx.array(rng.normal(0, 0.1, weights["lora_b"].shape), mx.float32)
        adapters.append(adapter)
    bank.update(bank.join(adapters))
    return bank


def assert_same(found: Parameters, expected: Parameters, tolerance: float = 1e-5) -> None:
    for (name, one), (_, other) in zip(tree_flatten(found), tree_flatten(expected), strict=True):
        np.testing.assert_allclose(
            np.array(one), np.array(other), rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_accumulation_does_not_change_the_training(
    tiny_llama: LLAMA,
    make_rows: Callable[..., Rows],
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
    dropout: float,
) -> None:
    """1x8, 2x4 and 8x1 give the same losses, norms and adapter after 6 steps, the tail included,
    with dropout too."""
    rows = make_rows(np.random.default_rng(0).integers(3, 90, 42).tolist())
    results = []
    for size in (1, 2, 8):
        train = settings(batch_size=size, grad_accumulation_steps=8 // size)
        bank = bank_of(tiny_llama(), [AdapterShape(4, 2.0, dropout)], [0])
        state = State(bank.parameters(), initial_states(bank, [adamw()]))
        gradients, update = (
            compile_gradients(bank, tuned_cut(bank)),
            compile_update(bank, [adamw()]),
        )
        course = []
        for step in training_steps(rows, train, 0):
            keys = [dropout_keys(0, step.epoch, batch.rows) for batch in step.batches]
            course.append(take_step(gradients, update, state, step, keys, 1e-3))
        results.append((course, state.parameters))
    assert len(results[0][0]) == 6
    for course, parameters in results[1:]:
        np.testing.assert_allclose(course, results[0][0], rtol=1e-5)
        assert_same(parameters, results[0][1])


def test_three_adapters_train_as_three_runs(
    tiny_llama: LLAMA, make_rows: Callable[..., Rows], adamw: Callable[..., Optimizer]
) -> None:
    """Three stacked adapters with own rows, rank, optimizer, rate and dropout have the losses,
    norms and weights of three separate ones over 3 steps."""
    rows = make_rows([9, 20, 14, 30, 12, 25])
    optimizers = [
        adamw(),
        Optimizer(name="muon", learning_rate=1e-3, schedule="constant", warmup_fraction=0.0,
                  max_grad_norm=None, momentum=0.9, nesterov=True, betas=(0.9, 0.99), eps=1e-8,
                  weight_decay=0.1),
        Optimizer(name="adafactor", learning_rate=1e-3, schedule="constant", warmup_fraction=0.0,
                  max_grad_norm=0.5, eps=1e-30, weight_decay=0.0),
    ]  # fmt: skip
    rates = [1e-2, 2e-2, 5e-3]
    batch = collate(rows, range(6))
    keys = dropout_keys(0, 0, batch.rows)

    def train(shapes: list[AdapterShape], chosen: list[int], group: slice) -> Any:
        bank = bank_of(tiny_llama(), shapes, chosen)
        mine = [optimizers[k] for k in chosen]
        gradients, update = compile_gradients(bank, tuned_cut(bank)), compile_update(bank, mine)
        parameters, states = bank.parameters(), initial_states(bank, mine)
        part = collate(rows, range(6)[group])
        counts = np.bincount(part.owners).reshape(len(chosen), -1).sum(axis=1)
        course = []
        for _ in range(3):
            losses, summed = gradients(parameters, batch_arrays(part), mx.array(keys[group]))
            parameters, states, norms = update(
                parameters, summed, states, mx.array(counts, mx.float32),
                mx.array([rates[k] for k in chosen]),
            )  # fmt: skip
            course.append((np.array(losses), np.array(norms)))
        return course, bank.split(parameters)

    stacked, adapters = train(SHAPES, [0, 1, 2], slice(0, 6))
    for k in range(3):
        alone, (adapter,) = train([SHAPES[k]], [k], slice(2 * k, 2 * k + 2))
        for (losses, norms), (own_losses, own_norms) in zip(stacked, alone, strict=True):
            np.testing.assert_allclose(losses[2 * k : 2 * k + 2], own_losses, rtol=1e-5)
            np.testing.assert_allclose(norms[k : k + 1], own_norms, rtol=1e-5)
        assert_same(adapters[k], adapter, 2e-5)


def test_tokens_weigh_the_same_in_every_batch(
    tiny_llama: LLAMA, make_rows: Callable[..., Rows], adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
) -> None:  # fmt: skip
    """The norm of a step of unequal batches is that of the mean over all its tokens at once."""
    rows = make_rows([4, 90, 5, 80])
    bank = bank_of(tiny_llama(), [AdapterShape(4, 2.0)], [0])
    gradients, update = compile_gradients(bank, tuned_cut(bank)), compile_update(bank, [adamw()])
    (step,) = training_steps(rows, settings(batch_size=1, grad_accumulation_steps=4), 0)
    state = State(bank.parameters(), initial_states(bank, [adamw()]))
    _, norm, _ = take_step(gradients, update, state, step, [None] * 4, 1e-3)
    whole = collate(rows, range(4))
    _, summed = gradients(bank.parameters(), batch_arrays(whole), None)
    squares = sum(float(g.square().sum()) for _, g in tree_flatten(summed))
    assert norm == pytest.approx(np.sqrt(squares) / whole.supervised_tokens, rel=1e-5)


def course_of(
    tuning: Tuning, rows: Rows, optimizer: Optimizer, train: Train, few_shapes: bool
) -> tuple[list[tuple[float, float]], Parameters]:
    """Train with changing rates and return each step's loss and norm, and the weights."""
    gradients = compile_gradients(tuning, tuned_cut(tuning))
    update = compile_update(tuning, [optimizer])
    state = State(tuning.parameters(), initial_states(tuning, [optimizer]))
    course = []
    for step in training_steps(rows, train, 0, Layout(few_shapes=few_shapes)):
        keys = [dropout_keys(0, step.epoch, batch.rows) if tuning.has_dropout else None
                for batch in step.batches]  # fmt: skip
        course.append(take_step(gradients, update, state, step, keys, 1e-2 / (1 + step.number)))
    return course, state.parameters


def test_few_shapes_compute_the_same(
    tiny_llama: LLAMA,
    make_rows: Callable[..., Rows],
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
) -> None:
    """Wider rows and fillers among the targets change no loss, norm or weight, dropout included."""
    rows = make_rows([9, 40, 14, 70, 12, 25])
    (course, weights), (padded_course, padded_weights) = (
        course_of(bank_of(tiny_llama(), [AdapterShape(4, 2.0, 0.1)], [0]), rows, adamw(),
                  settings(batch_size=2), few_shapes)
        for few_shapes in (False, True)
    )  # fmt: skip
    np.testing.assert_allclose(padded_course, course, rtol=1e-5)
    assert_same(padded_weights, weights, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [True, False])
def test_compiled_functions_compute_the_same(
    tiny_llama: LLAMA,
    make_rows: Callable[..., Rows],
    adamw: Callable[..., Optimizer],
    settings: Callable[..., Train],
    monkeypatch: pytest.MonkeyPatch,
    adapter: bool,
) -> None:
    """Compiled, as on a GPU, three steps of changing shapes and rates follow the plain ones, in
    chunks and in tiles, and no traced weights stay in the model."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 20 * 64)
    monkeypatch.setattr(cross_entropy_module, "TILE_ELEMENTS", 8 * 64)
    rows = make_rows([9, 40, 14, 70, 12, 25])
    results = []
    for compiled in (lambda function: function, mx.compile):
        monkeypatch.setattr(step_module, "compiled", compiled)
        model = tiny_llama(tie_word_embeddings=True)
        tuning: Tuning = all_weights(model)
        if adapter:
            tuning = bank_of(model, [AdapterShape(4, 2.0, 0.1)], [0])
        course, weights = course_of(
            tuning, rows, adamw(eps=1e-5), settings(batch_size=2), compiled is mx.compile
        )
        results.append((course, weights, np.array(model(mx.array([[1, 2, 3]])))))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    assert_same(results[1][1], results[0][1], 2e-5)
    np.testing.assert_allclose(results[1][2], results[0][2], rtol=1e-5)
