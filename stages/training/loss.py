"""The training loss: float32 cross-entropy, with the head's work on supervised positions alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
from mlx import nn

from stages.training.batches import Batch
from stages.training.cross_entropy import cross_entropy, even_parts
from stages.training.head import UNCUT, Cut, hidden_states, logits, module_at

CHUNK_ELEMENTS = 1 << 24
"""Logits that the head makes at a time, some 64 MB. On one CPU core, 576 wide and with 49,152
tokens to choose from, a token's loss and gradient take 2.06 us; 2.18 and 2.37 at 2^23 and 2^22,
where the products are thinner, 2.45 for all logits at once."""

BatchArrays = (
    tuple[mx.array, mx.array, mx.array, mx.array]
    | tuple[mx.array, mx.array, mx.array, mx.array, mx.array]
)
"""inputs (B, T), positions (N,), targets (N,) and owners (N,), int32: the arrays of a Batch. The
fifth, where there is one: hidden states (B, T, H) that the frozen blocks give."""


@dataclass(frozen=True, slots=True)
class Head:
    """Makes logits (n, V) of hidden states (n, H) and of the head's trained weights."""

    model: nn.Module
    cut: Cut
    places: tuple[tuple[nn.Module, str], ...] = ()
    """Where the trained weights lie: modules and names."""
    names: tuple[tuple[str, str], ...] = ()
    """The same as paths and names."""

    def __call__(self, hidden: mx.array, *weights: mx.array) -> mx.array:
        """Return the logits; what lies at the places is left as it was."""
        kept = self.weights()
        self._put(weights)
        try:
            return logits(self.model, self.cut, hidden)
        finally:
            self._put(kept)

    def weights(self) -> list[mx.array]:
        """Return the trained weights that the model has now."""
        return [module[name] for module, name in self.places]

    def _put(self, weights: Sequence[mx.array]) -> None:
        for (module, name), weight in zip(self.places, weights, strict=True):
            module[name] = weight


def head_of(
    model: nn.Module, cut: Cut, trained: Mapping[str, Collection[str]] | None = None
) -> Head:
    """Return the model's head; `trained` names trained weights by module path."""
    names = tuple((path, name) for path, names in (trained or {}).items() if cut.in_head(path)
                  for name in names)  # fmt: skip
    return Head(model, cut, tuple((module_at(model, path), name) for path, name in names), names)


def batch_arrays(batch: Batch) -> BatchArrays:
    """Hand a batch over to MLX."""
    return (mx.array(batch.inputs), mx.array(batch.positions),
            mx.array(batch.targets), mx.array(batch.owners))  # fmt: skip


def row_losses(
    model: nn.Module,
    cut: Cut,
    batch: BatchArrays,
    trained: Mapping[str, Collection[str]] | None = None,
) -> mx.array:
    """Sum the loss over the supervised targets of each row: (B,) float32.

    A mean is taken once, over the tokens of a whole step. `trained` names the weights that a
    gradient will be asked of, by module path; None: no gradient will be, and nothing of one is
    computed. A model that cannot be cut makes the logits of all positions.
    """
    inputs, positions, targets, owners = batch[:4]
    if cut == UNCUT:
        made = model(inputs)
        losses = cross_entropy(made.reshape(-1, made.shape[-1])[positions], targets)
    else:
        hidden = hidden_states(model, cut, inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        losses = _token_losses(model, cut, hidden, targets, trained)
    rows = mx.arange(inputs.shape[0])[:, None]
    # Not a scatter: a GPU adds in an order that changes from run to run.
    return mx.where(owners == rows, losses, 0).sum(axis=1)


def _token_losses(
    model: nn.Module,
    cut: Cut,
    hidden: mx.array,
    targets: mx.array,
    trained: Mapping[str, Collection[str]] | None,
) -> mx.array:
    """Return the loss of each target (N,) by the hidden state (N, H) before it."""
    head = head_of(model, cut, trained)
    weights = head.weights()
    if trained is None:
        return _losses(head, hidden, targets)
    if weights:
        return _losses_of_trained_head(head, hidden, targets, weights)
    return _losses_with_gradients(head, hidden, targets)


def _losses(
    head: Head, hidden: mx.array, targets: mx.array, weights: Sequence[mx.array] = ()
) -> mx.array:
    losses: list[mx.array] = []
    for part in _chunks(head, hidden, weights):
        # One chunk after the other: MLX would otherwise make the logits of several at once.
        inputs = mx.depends(hidden[part], losses[-1:]) if losses else hidden[part]
        losses.append(cross_entropy(head(inputs, *weights), targets[part]))
    return mx.concatenate(losses)


def _losses_with_gradients(head: Head, hidden: mx.array, targets: mx.array) -> mx.array:
    """Compute losses and gradients together: both need the same exponentials.

    What stays until the backward pass is the gradient (N, H) of each token's own loss.
    """
    known = mx.stop_gradient(hidden)
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    for part in _chunks(head, known):
        inputs = known[part]
        if losses:
            inputs = mx.depends(inputs, [losses[-1], gradients[-1]])
        ones = mx.ones((inputs.shape[0],))
        loss, (gradient,) = _chunk_gradients(head, [inputs], targets[part], ones)
        losses.append(loss)
        gradients.append(gradient)
    together, by_token = mx.concatenate(losses), mx.concatenate(gradients)

    @mx.custom_function
    def losses_of(_: mx.array) -> mx.array:
        return together

    @losses_of.vjp
    def _(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        return (cotangent[:, None] * by_token).astype(by_token.dtype)

    return cast("mx.array", losses_of(hidden))


def _losses_of_trained_head(
    head: Head, hidden: mx.array, targets: mx.array, weights: Sequence[mx.array]
) -> mx.array:
    """Compute the losses, and each chunk once more for the gradients of hidden states and head."""

    @mx.custom_function
    def losses_of(hidden: mx.array, *weights: mx.array) -> mx.array:
        return _losses(head, hidden, targets, weights)

    @losses_of.vjp
    def _(primals: Sequence[mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        hidden, *weights = primals
        by_token: list[mx.array] = []
        totals = [mx.zeros(weight.shape) for weight in weights]
        for part in _chunks(head, hidden, weights):
            inputs = hidden[part]
            if by_token:
                inputs = mx.depends(inputs, [by_token[-1], *totals])
            _, (gradient, *of_weights) = _chunk_gradients(
                head, [inputs, *weights], targets[part], cotangent[part]
            )
            by_token.append(gradient)
            totals = [total + new for total, new in zip(totals, of_weights, strict=True)]
        summed = (t.astype(weight.dtype) for t, weight in zip(totals, weights, strict=True))
        return mx.concatenate(by_token), *summed

    return cast("mx.array", losses_of(hidden, *weights))


def _chunk_gradients(
    head: Head, inputs: Sequence[mx.array], targets: mx.array, cotangent: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """Return the losses (n,) of hidden states and weights, and the gradients of each of these."""
    [losses], gradients = mx.vjp(
        lambda *inputs: cross_entropy(head(*inputs), targets), list(inputs), [cotangent]
    )
    return losses, gradients


def _chunks(
    head: Head, hidden: mx.array, weights: Sequence[mx.array] = ()
) -> Iterator[slice]:  # fmt: skip
    # Only the shape is asked of the logits: they are never evaluated.
    return even_parts(hidden.shape[0], head(hidden[:1], *weights).shape[-1], CHUNK_ELEMENTS)
