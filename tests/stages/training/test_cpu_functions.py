"""Attention, norms and gates of the CPU against torch in float64; packed rows as rows apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn
from mlx_lm.models import activations, llama
from mlx_lm.models.base import create_causal_mask
from torch.nn import functional

from stages.training import cpu_functions as cpu
from stages.training.cpu_functions import QUERIES, cpu_functions, packed, positions_in_rows

RNG = np.random.default_rng(3)
PLAIN_ATTENTION = mx.fast.scaled_dot_product_attention
PLAIN_NORM = mx.fast.rms_norm


def drawn(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(0, 1, shape).astype(np.float32)


def of_mlx(
    function: Callable[..., mx.array],
    arrays: Sequence[np.ndarray[Any, Any]],
    weight: np.ndarray[Any, Any],
) -> list[np.ndarray[Any, Any]]:
    """Return the value of a function and the gradients of its sum, weighted."""
    inputs = [mx.array(array) for array in arrays]
    values, gradients = mx.vjp(function, inputs, [mx.array(weight)])
    return [np.array(array) for array in (*values, *gradients)]


def of_torch(
    function: Callable[..., torch.Tensor],
    arrays: Sequence[np.ndarray[Any, Any]],
    weight: np.ndarray[Any, Any],
) -> list[np.ndarray[Any, Any]]:
    """Return the same by torch in float64."""
    inputs = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    value = function(*inputs)
    value.backward(torch.tensor(weight, dtype=torch.float64))
    return [value.detach().numpy(), *(x.grad.numpy() for x in inputs if x.grad is not None)]


def assert_close(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = max(float(np.abs(np.array(other)).max()), 1e-1)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * largest)


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3,
                                                   enable_gqa=True)  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "length", "wide"),
    [
        (1, 4, 4, 1, 8),
        (2, 4, 2, 7, 8),
        (3, 6, 1, 20, 4),
        (1, 2, 1, QUERIES, 8),
        (2, 4, 2, QUERIES + 1, 8),
        (1, 3, 3, 2 * QUERIES + 45, 16),
    ],
)
def test_attention_is_that_of_torch(
    batch: int, heads: int, groups: int, length: int, wide: int
) -> None:
    """Values and gradients by queries, keys and values, of values of another width than keys."""
    arrays = [drawn(batch, heads, length, 8), drawn(batch, groups, length, 8),
              drawn(batch, groups, length, wide)]  # fmt: skip
    weight = drawn(batch, heads, length, wide)
    found = of_mlx(lambda q, k, v: cpu.attention(q, k, v, scale=0.3, mask="causal"),
                   arrays, weight)  # fmt: skip
    assert_close(found, of_torch(torch_attention, arrays, weight))


def test_attention_of_large_scores_is_that_of_torch() -> None:
    """Scores of hundreds neither overflow nor vanish."""
    arrays = [40 * drawn(1, 2, 9, 8), drawn(1, 2, 9, 8), drawn(1, 2, 9, 8)]
    weight = drawn(1, 2, 9, 8)
    found = of_mlx(lambda q, k, v: cpu.attention(q, k, v, scale=0.3, mask="causal"),
                   arrays, weight)  # fmt: skip
    assert_close(found, of_torch(torch_attention, arrays, weight), 1e-4)


LENGTHS = (5, 1, QUERIES + 3, 12)


def rows_apart(
    function: Callable[..., torch.Tensor],
    arrays: Sequence[np.ndarray[Any, Any]],
    weight: np.ndarray[Any, Any],
) -> list[np.ndarray[Any, Any]]:
    ends = np.cumsum(LENGTHS)
    made = [of_torch(function, [array[:, :, end - length : end] for array in arrays],
                     weight[:, :, end - length : end])
            for end, length in zip(ends, LENGTHS, strict=True)]  # fmt: skip
    return [np.concatenate(parts, axis=2) for parts in zip(*made, strict=True)]


def test_packed_rows_attend_as_rows_apart() -> None:
    """No row sees another, however long, in values and gradients."""
    total = sum(LENGTHS)
    arrays = [drawn(1, 4, total, 8), drawn(1, 2, total, 8), drawn(1, 2, total, 8)]
    weight = drawn(1, 4, total, 8)
    with packed(LENGTHS):
        found = of_mlx(lambda q, k, v: cpu.attention(q, k, v, scale=0.3, mask="causal"),
                       arrays, weight)  # fmt: skip
    assert_close(found, rows_apart(torch_attention, arrays, weight))


def test_packed_rows_below_a_mask_attend_as_rows_apart() -> None:
    """A sliding window, an array of all tokens, is cut to each row."""
    total, window = sum(LENGTHS), 4
    arrays = [drawn(1, 4, total, 8), drawn(1, 2, total, 8), drawn(1, 2, total, 8)]
    weight = drawn(1, 4, total, 8)
    mask = create_causal_mask(total, window_size=window)

    def windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        place = torch.arange(q.shape[2])
        back = place[:, None] - place
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=(back >= 0) & (back < window), scale=0.3, enable_gqa=True
        )

    with packed(LENGTHS):
        found = of_mlx(lambda q, k, v: cpu.attention(q, k, v, scale=0.3, mask=mask),
                       arrays, weight)  # fmt: skip
    assert_close(found, rows_apart(windowed, arrays, weight))


def test_what_attention_does_not_know_goes_to_mlx() -> None:
    """Sinks, another type, keys of earlier tokens and no mask give MLX's own bytes."""
    q, k, v = mx.array(drawn(1, 4, 6, 8)), mx.array(drawn(1, 2, 6, 8)), mx.array(drawn(1, 2, 6, 8))
    half = [x.astype(mx.bfloat16) for x in (q, k, v)]
    asked: list[tuple[list[mx.array], dict[str, Any]]] = [
        ([q, k, v], {"mask": "causal", "sinks": mx.array(drawn(4))}),
        (half, {"mask": "causal"}),
        ([q[:, :, 4:], k, v], {"mask": "causal"}),
        ([q, k, v], {"mask": None}),
    ]
    for arrays, options in asked:
        found = cpu.attention(*arrays, scale=0.3, **options)
        expected = PLAIN_ATTENTION(*arrays, scale=0.3, **options)
        assert found.dtype == expected.dtype
        assert mx.array_equal(found, expected)


def test_packed_rows_with_sinks_attend_as_rows_apart() -> None:
    """Each row has the sinks for itself."""
    q, k, v = (mx.array(drawn(1, 2, 9, 8)) for _ in range(3))
    options: dict[str, Any] = {"scale": 0.3, "mask": "causal", "sinks": mx.array(drawn(2))}
    with packed((4, 5)):
        found = cpu.attention(q, k, v, **options)
    apart = [PLAIN_ATTENTION(q[:, :, own], k[:, :, own], v[:, :, own], **options)
             for own in (slice(4), slice(4, 9))]  # fmt: skip
    np.testing.assert_allclose(found, mx.concatenate(apart, axis=2), atol=1e-6)


def test_rows_that_do_not_make_the_batch_are_refused() -> None:
    """Lengths of another batch are never taken for those of this one."""
    q = mx.array(drawn(1, 2, 9, 8))
    with packed((4, 4)), pytest.raises(ValueError, match="do not make 9"):
        cpu.attention(q, q, q, scale=1.0, mask="causal")


def test_rms_norm_is_that_of_torch() -> None:
    """Value, and gradients by what is normed and by the weight."""
    arrays, weight = [drawn(2, 5, 16), drawn(16)], drawn(2, 5, 16)
    found = of_mlx(lambda x, w: cpu.rms_norm(x, w, 1e-5), arrays, weight)
    expected = of_torch(lambda x, w: functional.rms_norm(x, (16,), w, 1e-5), arrays, weight)
    assert_close(found, expected)


def test_rms_norm_of_zeros_is_zero() -> None:
    """eps stays within the root."""
    found = of_mlx(lambda x, w: cpu.rms_norm(x, w, 1e-5),
                   [np.zeros((1, 16), np.float32), drawn(16)], drawn(1, 16))  # fmt: skip
    assert np.array_equal(found[0], np.zeros((1, 16)))
    assert all(np.isfinite(array).all() for array in found)


def test_norms_that_are_not_known_go_to_mlx() -> None:
    """Without a weight, or in another type."""
    x, weight = mx.array(drawn(3, 16)), mx.array(drawn(16))
    assert mx.array_equal(cpu.rms_norm(x, None, 1e-5), PLAIN_NORM(x, None, 1e-5))
    half = x.astype(mx.bfloat16)
    for other in (weight, weight.astype(mx.bfloat16)):
        found, expected = cpu.rms_norm(half, other, 1e-5), PLAIN_NORM(half, other, 1e-5)
        assert found.dtype == expected.dtype
        assert mx.array_equal(found, expected)


# Where exponentials overflow, the gates are 0 and x.
GATE = np.concatenate([drawn(50), np.array([0, 30, -30, 95, -95, 300, -300], np.float32)])


def test_gates_are_those_of_torch() -> None:
    """silu and SwiGLU, and their gradients, from -300 to 300."""
    other, weight = drawn(len(GATE)), drawn(len(GATE))
    assert_close(of_mlx(cpu.silu, [GATE], weight), of_torch(functional.silu, [GATE], weight))
    found = of_mlx(cpu.swiglu, [GATE, other], weight)
    assert_close(found, of_torch(lambda g, x: functional.silu(g) * x, [GATE, other], weight))


def test_gates_of_other_types_keep_them() -> None:
    """bfloat16 stays bfloat16."""
    x = mx.array(GATE[:50]).astype(mx.bfloat16)
    expected = functional.silu(torch.tensor(np.array(x.astype(mx.float32)))).numpy()
    for found, wanted in ((cpu.silu(x), expected), (cpu.swiglu(x, x), expected * GATE[:50])):
        assert found.dtype == mx.bfloat16
        np.testing.assert_allclose(found.astype(mx.float32), wanted, rtol=0.03, atol=0.01)


def test_positions_of_packed_and_of_padded_rows() -> None:
    """Row and place of each token, by hand."""
    found = positions_in_rows(mx.zeros((2, 3)))
    assert found.tolist() == [[[0, 0, 0], [1, 1, 1]], [[0, 1, 2], [0, 1, 2]]]
    with packed((2, 1, 3)):
        found = positions_in_rows(mx.zeros((1, 6)))
    assert found.tolist() == [[[0, 0, 1, 2, 2, 2]], [[0, 1, 0, 0, 1, 2]]]


def test_everything_is_put_back(tiny_llama: Callable[..., Any]) -> None:
    """Also after an exception; and while the functions stand in, a model uses them."""
    places = [(mx.fast, "scaled_dot_product_attention"), (mx.fast, "rms_norm"), (nn, "silu"),
              (llama, "swiglu"), (activations, "swiglu")]  # fmt: skip
    before = [getattr(place, name) for place, name in places]
    model = tiny_llama()
    with cpu_functions(model):
        assert [getattr(place, name) for place, name in places] == [
            cpu.attention, cpu.rms_norm, cpu.silu, cpu.swiglu, activations.swiglu
        ]  # fmt: skip
    with pytest.raises(ValueError, match="do not make 9"), cpu_functions(model), packed((1, 2)):
        model(mx.zeros((1, 9), mx.int32))
    assert all(getattr(place, name) is one
               for (place, name), one in zip(places, before, strict=True))  # fmt: skip
    assert cpu.row_count(mx.zeros((4, 2))) == 4


def test_model_gives_the_same(tiny_llama: Callable[..., Any]) -> None:
    """Logits with the functions are those without, up to rounding."""
    model, tokens = tiny_llama(), mx.array(RNG.integers(1, 64, (2, 30)))
    expected = np.array(model(tokens))
    with cpu_functions(model):
        found = np.array(model(tokens))
    assert_close([found], [expected])
