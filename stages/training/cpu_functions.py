"""Functions of MLX's models that train faster on a CPU: fewer passes, cheaper exponentials.

MLX computes elementwise operations there on one core and takes 12 ns for an exponential, 15 for a
sigmoid; `mx.power` takes 4. Attention and SwiGLU cost half of what they did, norms two thirds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import activations

QUERIES = 128
"""Queries whose scores are computed together: those of a causal row have no later keys then."""

_LOG2_E = math.log2(math.e)
_MASKED = -1e30
_attention = mx.fast.scaled_dot_product_attention
_rms_norm = mx.fast.rms_norm
_lengths: tuple[int, ...] = ()


@contextmanager
def cpu_functions(model: nn.Module) -> Iterator[None]:
    """Let models compute with the functions of this module for a while; on a GPU with MLX's own.

    Gradients are the same up to rounding. What a function here does not know (masks other than
    causal, types other than float32) goes to the one it stands for.
    """
    places: list[tuple[Any, str, Any]] = []
    if mx.default_device() == mx.cpu:
        places = [(mx.fast, "scaled_dot_product_attention", attention),
                  (mx.fast, "rms_norm", rms_norm), (nn, "silu", silu)]  # fmt: skip
        modules = {type(module).__module__ for module in model.modules()}
        for namespace in (sys.modules[name] for name in sorted(modules)):
            if getattr(namespace, "swiglu", None) is activations.swiglu:
                places.append((namespace, "swiglu", swiglu))
    kept = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for (place, name, _), function in zip(places, kept, strict=True):
            setattr(place, name, function)


@contextmanager
def packed(lengths: Sequence[int]) -> Iterator[None]:
    """Let attention keep rows of these lengths apart that lie one after the other in one row."""
    global _lengths
    kept, _lengths = _lengths, tuple(lengths)
    try:
        yield
    finally:
        _lengths = kept


def row_count(inputs: mx.array) -> int:
    """Return how many rows lie in inputs (B, T): more than B if they are packed."""
    return len(_lengths) or inputs.shape[0]


def positions_in_rows(inputs: mx.array) -> mx.array:
    """Return which row of the batch each token is of, and its place in the row: (2, B, T)."""
    lengths = _lengths or (inputs.shape[1],) * inputs.shape[0]
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    return mx.array(np.stack([row, place]).reshape(2, *inputs.shape).astype(np.uint32))


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **options: Any,
) -> mx.array:
    """Compute causal attention of q (B, H, T, D) on k and v (B, G, T, D): (B, H, T, D).

    What stays for the backward pass is the weights below the diagonal, by blocks of queries; the
    gradient is that of FlashAttention (arXiv 2205.14135, appendix B).
    """
    length = q.shape[2]
    rows = _spans(_lengths or (length,))
    if rows[-1].stop != length:
        raise ValueError(f"rows of {_lengths} tokens do not make {length}")
    causal = mask == "causal" if isinstance(mask, str) else False
    if causal and sinks is None and not options and _plain(q, k, v, length == k.shape[2]):
        return _causal(q, k, v, scale, rows)
    if not _lengths:
        return _attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    # What a mask says of two tokens depends on how far apart they are, not on where they stand.
    return mx.concatenate(
        [_attention(q[:, :, own], k[:, :, own], v[:, :, own], scale=scale, sinks=sinks, **options,
                    mask=mask[..., own, own] if isinstance(mask, mx.array) else mask)
         for own in rows], axis=2)  # fmt: skip


def _causal(q: mx.array, k: mx.array, v: mx.array, scale: float, rows: Sequence[slice]) -> mx.array:
    batch, heads, length = q.shape[:3]
    groups = k.shape[1]

    def grouped(x: mx.array) -> mx.array:
        return x.reshape(batch, groups, heads // groups, *x.shape[2:])

    def ungrouped(x: mx.array, width: int) -> mx.array:
        return x.reshape(batch, groups, heads // groups, -1, width)

    queries, keys, values = (mx.stop_gradient(x) for x in (grouped(q), k, v))
    scaled = queries * (scale * _LOG2_E)
    # Queries of one row, and the keys that they see.
    parts = [(part, slice(row.start, part.stop)) for row in rows for part in _blocks(row)]
    weights, outputs = [], []
    for part, known in parts:
        scores = _merged(scaled[:, :, :, part]) @ keys[:, :, known].swapaxes(-1, -2)
        scores = ungrouped(scores, known.stop - known.start)
        weights.append(_softmax2(scores, part.start - known.start))
        outputs.append(ungrouped(_merged(weights[-1]) @ values[:, :, known], v.shape[-1]))
    made = mx.concatenate(outputs, axis=3) if len(parts) > 1 else outputs[0]

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return made.reshape(batch, heads, length, -1)

    @attend.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> tuple[mx.array, mx.array, mx.array]:
        cotangent = grouped(cotangent)
        own = (cotangent * made).sum(axis=-1, keepdims=True)
        of_queries: list[mx.array] = []
        of_keys: list[mx.array] = []
        of_values: list[mx.array] = []
        for (part, known), weight in zip(parts, weights, strict=True):
            given = _merged(cotangent[:, :, :, part])
            raw = ungrouped(given @ values[:, :, known].swapaxes(-1, -2), weight.shape[-1])
            scores = _merged((raw - own[:, :, :, part]) * weight)
            of_queries.append(ungrouped(scores @ keys[:, :, known], q.shape[-1]))
            below = scores.swapaxes(-1, -2) @ _merged(queries[:, :, :, part])
            mixed = _merged(weight).swapaxes(-1, -2) @ given
            if part.start > known.start:
                # The row's earlier queries have seen fewer keys.
                rest = [(0, 0), (0, 0), (0, part.stop - part.start), (0, 0)]
                below = below + mx.pad(of_keys.pop(), rest)
                mixed = mixed + mx.pad(of_values.pop(), rest)
            of_keys.append(below)
            of_values.append(mixed)
        of_q = mx.concatenate(of_queries, axis=3) * scale
        of_k = mx.concatenate(of_keys, axis=2) * scale
        return of_q.reshape(q.shape), of_k, mx.concatenate(of_values, axis=2)

    return cast("mx.array", attend(q, k, v))


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **options: Any) -> mx.array:
    """Divide x (..., D) by the root of its mean square, times `weight` (D,) (arXiv 1910.07467)."""
    if weight is None or options or not _plain(x, weight):
        return _rms_norm(x, weight, eps, **options)
    known, factor = mx.stop_gradient(x), mx.stop_gradient(weight)
    inverse = mx.rsqrt(known.square().mean(axis=-1, keepdims=True) + eps)
    normed = known * inverse
    made = normed * factor

    @mx.custom_function
    def norm(x: mx.array, weight: mx.array) -> mx.array:
        return made

    @norm.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> tuple[mx.array, mx.array]:
        scaled = cotangent * factor
        along = (scaled * normed).mean(axis=-1, keepdims=True)
        # The second is computed only where the weight is trained.
        of_weight = (cotangent * normed).reshape(-1, factor.size).sum(axis=0)
        return (scaled - normed * along) * inverse, of_weight

    return cast("mx.array", norm(x, weight))


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Return silu(gate) * x (arXiv 2002.05202)."""
    if not _plain(gate, x):
        return cast("mx.array", activations.swiglu(gate, x))
    opened, other = mx.stop_gradient(gate), mx.stop_gradient(x)
    sigmoid = _sigmoid(opened)
    made = opened * sigmoid * other

    @mx.custom_function
    def gated(gate: mx.array, x: mx.array) -> mx.array:
        return made

    @gated.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> tuple[mx.array, mx.array]:
        # Made again: it would be the largest thing that a block keeps.
        active = opened * sigmoid
        return cotangent * other * _slope(sigmoid, active), cotangent * active

    return cast("mx.array", gated(gate, x))


def silu(x: mx.array) -> mx.array:
    """Return x * sigmoid(x) (arXiv 1702.03118)."""
    if not _plain(x):
        return x * mx.sigmoid(x)
    known = mx.stop_gradient(x)
    sigmoid = _sigmoid(known)
    made = known * sigmoid

    @mx.custom_function
    def active(x: mx.array) -> mx.array:
        return made

    @active.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> mx.array:
        return cotangent * _slope(sigmoid, known * sigmoid)

    return cast("mx.array", active(x))


def _plain(*arrays: Any) -> bool:
    """Tell whether all are float32, and all that is not an array holds."""
    return all(x.dtype == mx.float32 if isinstance(x, mx.array) else bool(x) for x in arrays)


def _sigmoid(x: mx.array) -> mx.array:
    return mx.reciprocal(1 + mx.power(2.0, x * -_LOG2_E))


def _slope(sigmoid: mx.array, active: mx.array) -> mx.array:
    """Return the derivative of silu where it is `active`."""
    return sigmoid + active * (1 - sigmoid)


def _softmax2(scores: mx.array, start: int) -> mx.array:
    """Return causal weights by powers of two of scores (..., Q, K) of queries from `start` on."""
    queries, keys = scores.shape[-2:]
    scores = scores + mx.triu(mx.full((queries, keys), _MASKED), k=start + 1)
    powers = mx.power(2.0, scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _spans(lengths: Sequence[int]) -> list[slice]:
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _blocks(row: slice) -> list[slice]:
    """Cut the queries of a row into even blocks."""
    length = row.stop - row.start
    size = -(-length // -(-length // QUERIES))
    return [slice(start, min(start + size, row.stop))
            for start in range(row.start, row.stop, size)]  # fmt: skip


def _merged(x: mx.array) -> mx.array:
    """Join the queries of all heads of a group: (B, G, R, Q, D) to (B, G, R * Q, D)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
