"""The compiled functions of a step: gradients of some rows, their losses, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_map

from stages.lora.bank import Bank, Parameters
from stages.lora.full import Tuning
from stages.training.cpu_functions import positions_in_rows
from stages.training.cpu_gradients import cpu_gradients, cpu_losses
from stages.training.head import UNCUT, Cut, find_cut
from stages.training.loss import BatchArrays, row_losses
from stages.training.optimizers import clip, joined, make_optimizer, parted
from stages.training.prefix import frozen_blocks, given
from stages.training_settings import Optimizer

Gradients = Callable[[Parameters, BatchArrays, mx.array | None], tuple[mx.array, Parameters]]
RowLosses = Callable[[Parameters, BatchArrays], mx.array]
Update = Callable[
    [Parameters, Parameters, list[Any], mx.array, mx.array],
    tuple[Parameters, list[Any], mx.array],
]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a pure function on a GPU, with one trace per shape of its arguments.

    Left alone on a CPU: MLX would run g++ once per fused kernel, 20 seconds for a first step, and
    a step is no faster for it.
    """
    if mx.default_device() == mx.cpu:
        return function
    return cast("F", mx.compile(function))


def few_shapes() -> bool:
    """Tell whether every new shape of a batch costs a compilation: see `compiled`."""
    return bool(mx.default_device() != mx.cpu)


def tuned_cut(tuning: Tuning) -> Cut:
    """Find where the model can be cut for training what is trained.

    UNCUT too where the head has adapters that must know whose row a hidden state is of: several
    of them, or with dropout.
    """
    # Several adapters share their input out by rows, and the proof has one row.
    tuning.detach()
    try:
        cut = find_cut(tuning.model)
    finally:
        tuning.attach()
    by_row = isinstance(tuning, Bank) and (len(tuning.shapes) > 1 or tuning.has_dropout)
    return UNCUT if by_row and any(map(cut.in_head, tuning.parameters())) else cut


def compile_gradients(tuning: Tuning, cut: Cut) -> Gradients:
    """Return a function of (parameters, batch, dropout keys of the rows or None).

    It gives the summed loss of each row (B,) and the gradients of their sum.
    """

    frozen = frozen_blocks(tuning)
    if mx.default_device() == mx.cpu and cut != UNCUT:
        return lambda parameters, batch, row_keys: cpu_gradients(
            tuning, cut, frozen, parameters, batch, _token_keys(row_keys, batch)
        )

    def loss_sum(
        parameters: Parameters, batch: BatchArrays, row_keys: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        tuning.model.train()
        keys = _token_keys(row_keys, batch)
        with tuning.using(parameters, dropout_keys=keys), given(frozen, batch[4:]):
            losses = row_losses(tuning.model, cut, batch, parameters)
        return losses.sum(), losses

    with_gradients = mx.value_and_grad(loss_sum)

    def gradients(*arguments: Any) -> tuple[mx.array, Parameters]:
        (_, losses), result = with_gradients(*arguments)
        return losses, result

    return compiled(gradients)


def compile_losses(tuning: Tuning, cut: Cut) -> RowLosses:
    """Return a function of (parameters, batch) that gives the summed loss of each row."""
    frozen = frozen_blocks(tuning)
    if mx.default_device() == mx.cpu and cut != UNCUT:
        return lambda parameters, batch: cpu_losses(tuning, cut, frozen, parameters, batch)

    def losses(parameters: Parameters, batch: BatchArrays) -> mx.array:
        tuning.model.eval()
        with tuning.using(parameters), given(frozen, batch[4:]):
            return row_losses(tuning.model, cut, batch)

    return compiled(losses)


def compile_update(
    tuning: Tuning, optimizers: Sequence[Optimizer], b_learning_rate_ratio: float | None = None
) -> Update:
    """Return a function of (parameters, summed gradients, states, token counts, learning rates).

    Counts and rates are (K,). Each adapter is divided by its own tokens, clipped and moved by its
    own optimizer. Gives the new parameters, the new states and the norms (K,) before clipping.
    """

    def update(
        parameters: Parameters,
        gradients: Parameters,
        states: list[Any],
        counts: mx.array,
        rates: mx.array,
    ) -> tuple[Parameters, list[Any], mx.array]:
        moved, new_states, norms = [], [], []
        adapters = zip(optimizers, tuning.split(parameters), tuning.split(gradients), states,
                       strict=True)  # fmt: skip
        for k, (settings, adapter, gradient, state) in enumerate(adapters):
            gradient = joined(settings, gradient)
            mean = tree_map(lambda g, count=counts[k]: g / count, gradient)
            mean, norm = clip(mean, settings.max_grad_norm)
            optimizer = make_optimizer(settings, b_learning_rate_ratio)
            optimizer.state = tree_map(lambda leaf: leaf, state)
            optimizer.learning_rate = rates[k]
            new = optimizer.apply_gradients(mean, joined(settings, adapter))
            moved.append(parted(settings, new, adapter))
            new_states.append(optimizer.state)
            norms.append(norm)
        return tuning.join(moved), new_states, mx.stack(norms)

    return compiled(update)


def initial_states(
    tuning: Tuning, optimizers: Sequence[Optimizer], b_learning_rate_ratio: float | None = None
) -> list[Any]:
    """Return the state of each adapter's optimizer before the first step."""
    states = []
    for settings, adapter in zip(optimizers, tuning.split(tuning.parameters()), strict=True):
        optimizer = make_optimizer(settings, b_learning_rate_ratio)
        optimizer.init(joined(settings, adapter))
        states.append(optimizer.state)
    return states


def _token_keys(row_keys: mx.array | None, batch: BatchArrays) -> mx.array | None:
    """Give each token of a row its own key: (B, T, 2); None: nothing is dropped."""
    if row_keys is None:
        return None
    row, place = positions_in_rows(batch[0])
    return row_keys[row] + mx.stack([mx.zeros_like(place), place], axis=-1)
