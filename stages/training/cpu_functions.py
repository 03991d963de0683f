"""Functions of MLX's models that train faster on a CPU: fewer passes, cheaper exponentials.

MLX computes elementwise operations there on one core and takes 12 ns for an exponential, 15 for a
sigmoid; `mx.power` takes 4. Attention and SwiGLU cost half of what they did, norms two thirds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
from mlx import nn
from mlx_lm.models import activations

QUERIES = 128
"""Queries whose scores are computed together: those of a causal row have no later keys then."""

_LOG2_E = math.log2(math.e)
_MASKED = -1e30
_attention = mx.fast.scaled_dot_product_attention
_rms_norm = mx.fast.rms_norm


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
    causal = mask == "causal" if isinstance(mask, str) else False
    if not causal or sinks is not None or options or not _plain(q, k, v, q.shape[2] == k.shape[2]):
        return _attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    batch, heads, length = q.shape[:3]
    groups = k.shape[1]

    def grouped(x: mx.array) -> mx.array:
        return x.reshape(batch, groups, heads // groups, *x.shape[2:])

    queries, keys, values = (mx.stop_gradient(x) for x in (grouped(q), k, v))
    scaled = queries * (scale * _LOG2_E)
    size = -(-length // -(-length // QUERIES))
    parts = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    weights, outputs = [], []
    for part in parts:
        known = slice(0, part.stop)
        scores = _merged(scaled[:, :, :, part]) @ keys[:, :, known].swapaxes(-1, -2)
        weights.append(_softmax2(scores.reshape(*scaled.shape[:3], -1, part.stop), part.start))
        mixed = _merged(weights[-1]) @ values[:, :, known]
        outputs.append(mixed.reshape(*scaled.shape[:3], -1, v.shape[-1]))
    made = mx.concatenate(outputs, axis=3)

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return made.reshape(batch, heads, length, -1)

    @attend.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> tuple[mx.array, mx.array, mx.array]:
        cotangent = grouped(cotangent)
        own = (cotangent * made).sum(axis=-1, keepdims=True)
        of_queries, of_keys, of_values = [], [], []
        for part, weight in zip(parts, weights, strict=True):
            known, rest = slice(0, part.stop), [(0, 0), (0, 0), (0, length - part.stop), (0, 0)]
            given = _merged(cotangent[:, :, :, part])
            raw = (given @ values[:, :, known].swapaxes(-1, -2)).reshape(weight.shape)
            scores = _merged((raw - own[:, :, :, part]) * weight)
            of_queries.append((scores @ keys[:, :, known]).reshape(queries[:, :, :, part].shape))
            below = scores.swapaxes(-1, -2) @ _merged(queries[:, :, :, part])
            mixed = _merged(weight).swapaxes(-1, -2) @ given
            of_keys.append(mx.pad(below, rest) if part.stop < length else below)
            of_values.append(mx.pad(mixed, rest) if part.stop < length else mixed)
        of_q = (mx.concatenate(of_queries, axis=3) * scale).reshape(q.shape)
        return of_q, sum(of_keys[1:], of_keys[0]) * scale, sum(of_values[1:], of_values[0])

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
    active = opened * sigmoid
    made = active * other

    @mx.custom_function
    def gated(gate: mx.array, x: mx.array) -> mx.array:
        return made

    @gated.vjp
    def _(_: Any, cotangent: mx.array, __: Any) -> tuple[mx.array, mx.array]:
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
        return cotangent * _slope(sigmoid, made)

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


def _merged(x: mx.array) -> mx.array:
    """Join the queries of all heads of a group: (B, G, R, Q, D) to (B, G, R * Q, D)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
