"""Losses and gradients on a CPU: the blocks in MLX, the softmax of the head in numpy.

numpy takes 0.4 ns for an exponential where MLX takes 12, and works in place, in the very memory of
MLX's logits: with 49,152 tokens to choose from, the head costs half of what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from stages.lora.bank import Parameters
from stages.lora.full import Tuning
from stages.training.cpu_functions import row_count
from stages.training.cross_entropy import even_parts
from stages.training.head import Cut, hidden_states
from stages.training.loss import BatchArrays, Head, head_of
from stages.training.prefix import Blocks, given

CHUNK_ELEMENTS = 1 << 24
"""Logits made at a time, 64 MB: for each product BLAS lays out the head's weights anew."""
_TILE_ELEMENTS = 1 << 20
"""Logits that numpy goes over again and again: 4 MB stay in a core's cache."""

Floats = NDArray[np.float32]


def cpu_gradients(
    tuning: Tuning,
    cut: Cut,
    frozen: Blocks,
    parameters: Parameters,
    batch: BatchArrays,
    dropout_keys: mx.array | None,
) -> tuple[mx.array, Parameters]:
    """Return the summed loss of each row (B,) and the gradients of their sum.

    The backward pass of the blocks is laid out before the head has run: it starts from an array
    that is filled once the head's gradient is known. `frozen` blocks are not computed where the
    batch holds what they give; `dropout_keys` are each token's, (B, T, 2).
    """
    inputs, positions, targets, owners, *below = batch
    tuning.model.train()
    known: list[mx.array] = []
    wanted: list[mx.array] = []

    def blocks(parameters: Parameters) -> mx.array:
        with tuning.using(parameters, dropout_keys=dropout_keys), given(frozen, below):
            hidden = hidden_states(tuning.model, cut, inputs)
        known.append(hidden)
        wanted.append(mx.array(np.zeros(hidden.shape, np.float32)))

        @mx.custom_function
        def loss_of(_: mx.array) -> mx.array:
            return mx.zeros(())

        @loss_of.vjp
        def _(hidden: mx.array, _: mx.array, __: mx.array) -> mx.array:
            return wanted[0].astype(hidden.dtype)

        return cast("mx.array", loss_of(hidden))

    _, result = mx.value_and_grad(blocks)(parameters)
    [hidden], [gradient] = known, wanted
    hidden = hidden.reshape(-1, hidden.shape[-1])
    # One that only fills a shape teaches nothing, the head neither.
    supervised = np.array(owners) < (rows := row_count(inputs))
    places, wished, owned = (np.array(a)[supervised] for a in (positions, targets, owners))
    with tuning.using(parameters, dropout_keys=dropout_keys):
        head = head_of(tuning.model, cut, parameters)
        losses, by_token, of_weights = head_gradients(head, hidden[mx.array(places)], wished)
    # Nothing has read the array yet, and numpy sees MLX's own memory.
    np.asarray(gradient).reshape(hidden.shape)[places] = by_token
    for (path, name), own in zip(head.names, of_weights, strict=True):
        so_far = result[path][name]
        result[path][name] = so_far + own.reshape(so_far.shape).astype(so_far.dtype)
    return _by_row(losses, owned, rows), result


def cpu_losses(
    tuning: Tuning, cut: Cut, frozen: Blocks, parameters: Parameters, batch: BatchArrays
) -> mx.array:
    """Return the summed loss of each row (B,), without dropout."""
    inputs, positions, targets, owners, *below = batch
    tuning.model.eval()
    with tuning.using(parameters), given(frozen, below):
        hidden = hidden_states(tuning.model, cut, inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        losses = head_losses(head_of(tuning.model, cut), hidden, np.array(targets))
    return _by_row(losses, np.array(owners), row_count(inputs))


def head_gradients(
    head: Head, hidden: mx.array, targets: NDArray[np.int32]
) -> tuple[Floats, Floats, list[mx.array]]:
    """Return losses (N,), their gradients by hidden states (N, H), and by the head's weights.

    Those by weights are of the sum of all losses; `hidden` is (N, H), `targets` (N,).
    """
    losses = np.empty(len(targets), np.float32)
    by_token = np.empty(hidden.shape, np.float32)
    weights = head.weights()
    of_weights = [mx.zeros(weight.shape) for weight in weights]
    for part, made in _chunks(head, hidden, weights):
        losses[part] = _losses_in_place(np.asarray(made), targets[part], gradients=True)
        # The logits' own memory holds their gradients now.
        _, found = mx.vjp(lambda *a: _logits(head, *a), [hidden[part], *weights], [made])
        of_weights = [total + new for total, new in zip(of_weights, found[1:], strict=True)]
        mx.eval(found[0], of_weights)
        by_token[part] = np.asarray(found[0].astype(mx.float32))
    return losses, by_token, of_weights


def head_losses(head: Head, hidden: mx.array, targets: NDArray[np.int32]) -> Floats:
    """Return the losses (N,) of hidden states (N, H)."""
    losses = np.empty(len(targets), np.float32)
    for part, made in _chunks(head, hidden, head.weights()):
        losses[part] = _losses_in_place(np.asarray(made), targets[part], gradients=False)
    return losses


def _chunks(head: Head, hidden: mx.array, weights: Sequence[mx.array]) -> Any:
    """Yield which hidden states, and their logits in float32, in memory of their own."""
    if hidden.shape[0] == 0:
        return
    vocabulary = head(hidden[:1], *weights).shape[-1]
    for part in even_parts(hidden.shape[0], vocabulary, CHUNK_ELEMENTS):
        made = _logits(head, hidden[part], *weights)
        mx.eval(made)
        yield part, made


def _logits(head: Head, hidden: mx.array, *weights: mx.array) -> mx.array:
    return head(hidden, *weights).astype(mx.float32)


def _losses_in_place(logits: Floats, targets: NDArray[np.int32], *, gradients: bool) -> Floats:
    """Return the losses (n,) of logits (n, V) and write over these: softmax minus one-hot."""
    losses = np.empty(len(logits), np.float32)
    # A loss that is not finite is found, and its row named, by who asked.
    with np.errstate(all="ignore"):
        for part in even_parts(len(logits), logits.shape[1], _TILE_ELEMENTS):
            tile, places = logits[part], (np.arange(len(targets[part])), targets[part])
            top = tile.max(axis=1, keepdims=True)
            own = tile[places] - top[:, 0]
            np.subtract(tile, top, out=tile)
            np.exp(tile, out=tile)
            total = tile.sum(axis=1, keepdims=True)
            losses[part] = np.log(total[:, 0]) - own
            if gradients:
                np.multiply(tile, 1 / total, out=tile)
                tile[places] -= 1
    return losses


def _by_row(losses: Floats, owners: NDArray[np.int32], rows: int) -> mx.array:
    sums = np.bincount(owners, losses.astype(np.float64), rows + 1)
    return mx.array(sums[:rows].astype(np.float32))
