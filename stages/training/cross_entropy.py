"""Cross-entropy in float32 that takes one exponential per logit, gradient included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import mlx.core as mx

TILE_ELEMENTS = 1 << 21
"""Logits whose exponentials are taken at a time. MLX runs ten operations ahead and holds what
they need: of tiles it is little. 2^24 logits take up to 6 times their size, 13 without tiles."""


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Return -log softmax(logits)[target] of logits (n, V) and targets (n,): (n,) float32.

    The gradient, softmax minus one-hot, is made of the exponentials of the loss: on MLX's CPU
    they take most of the time.
    """
    parts = list(even_parts(logits.shape[0], logits.shape[1], TILE_ELEMENTS))
    columns = targets[:, None]
    losses, powers, totals = [], [], []
    for part in parts:
        tile = logits[part].astype(mx.float32)
        top = tile.max(axis=-1, keepdims=True)
        powers.append(mx.exp(tile - top))
        totals.append(powers[-1].sum(axis=-1, keepdims=True))
        own = mx.take_along_axis(tile, columns[part], axis=-1)
        losses.append((mx.log(totals[-1]) + top - own).squeeze(-1))

    @mx.custom_function
    def losses_of(_: mx.array) -> mx.array:
        return mx.concatenate(losses)

    @losses_of.vjp
    def _(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        made = []
        for part, power, total in zip(parts, powers, totals, strict=True):
            scale = cotangent[part, None]
            shares = power * (scale / total)
            own = mx.take_along_axis(shares, columns[part], axis=-1) - scale
            made.append(mx.put_along_axis(shares, columns[part], own, axis=-1).astype(logits.dtype))
        return mx.concatenate(made)

    return cast("mx.array", losses_of(logits))


def even_parts(tokens: int, vocabulary: int, elements: int) -> Iterator[slice]:
    """Cut `tokens` into equal parts of at most `elements` logits, or of one token."""
    parts = -(-tokens // max(elements // vocabulary, 1))
    size = -(-tokens // parts)
    for start in range(0, tokens, size):
        yield slice(start, start + size)
