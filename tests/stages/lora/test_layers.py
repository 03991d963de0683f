from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from stages.lora.layers import AdapterShape, LoRALinear, Routing

SHAPES = [AdapterShape(2, 0.5), AdapterShape(5, 2.0), AdapterShape(3, 1.25)]


def drawn(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape), mx.float32)


def linear(input_dims: int = 32, output_dims: int = 24) -> nn.Linear:
    layer = nn.Linear(input_dims, output_dims)
    layer.weight, layer.bias = drawn(output_dims, input_dims, seed=1), drawn(output_dims, seed=2)
    return layer


def bank_layer(routing: Routing) -> tuple[LoRALinear, list[tuple[mx.array, mx.array]]]:
    """Return a layer with three adapters of different ranks, and the adapters' own matrices."""
    layer = LoRALinear(linear(), "layer", SHAPES, routing)
    own = []
    for k, shape in enumerate(SHAPES):
        lora_a = drawn(32, shape.rank, seed=10 + k)
        lora_b = drawn(shape.rank, 24, seed=20 + k)
        layer.lora_a[k, :, : shape.rank] = lora_a
        layer.lora_b[k, : shape.rank] = lora_b
        own.append((lora_a, lora_b))
    return layer, own


def single(routing: Routing, k: int, own: list[tuple[mx.array, mx.array]]) -> LoRALinear:
    layer = LoRALinear(linear(), "layer", [SHAPES[k]], routing)
    layer.lora_a, layer.lora_b = own[k][0][None], own[k][1][None]
    return layer


def test_new_adapter_changes_no_bit() -> None:
    """With lora_b at zero the layer gives exactly what the base layer gives."""
    x = drawn(2, 7, 32)
    layer = LoRALinear(linear(), "layer", [AdapterShape(4, 3.0)], Routing())
    layer.lora_a = drawn(1, 32, 4, seed=3)
    assert mx.array_equal(layer(x), linear()(x))


def test_update_is_scaled_product() -> None:
    """The layer computes W x + b + scale * B A x."""
    _, own = bank_layer(Routing())
    x = drawn(2, 7, 32)
    weight, bias = np.array(linear().weight), np.array(linear().bias)
    a, b = (np.array(matrix, np.float64) for matrix in own[1])
    expected = np.array(x) @ weight.T + bias + 2.0 * (np.array(x) @ a @ b)
    np.testing.assert_allclose(
        np.array(single(Routing(), 1, own)(x)), expected, rtol=1e-5, atol=1e-4
    )


def test_grouped_rows_equal_separate_adapters() -> None:
    """Three adapters of ranks 2, 5 and 3 on three groups of rows equal three single ones."""
    layer, own = bank_layer(Routing())
    x = drawn(6, 7, 32)
    expected = mx.concatenate(
        [single(Routing(), k, own)(x[2 * k : 2 * k + 2]) for k in range(3)], axis=0
    )
    np.testing.assert_allclose(np.array(layer(x)), np.array(expected), rtol=1e-5, atol=1e-5)


def test_grouped_gradients_equal_separate_adapters() -> None:
    """The stacked matrices have the gradients of each adapter alone, and zeros in the padding."""
    layer, own = bank_layer(Routing())
    x, weights = drawn(6, 7, 32), drawn(6, 7, 24, seed=5)

    def grouped(lora_a: mx.array, lora_b: mx.array) -> mx.array:
        layer.lora_a, layer.lora_b = lora_a, lora_b
        return (layer(x) * weights).sum()

    grad_a, grad_b = mx.grad(grouped, argnums=(0, 1))(layer.lora_a, layer.lora_b)
    for k, shape in enumerate(SHAPES):
        rows = slice(2 * k, 2 * k + 2)
        alone = single(Routing(), k, own)

        def loss(
            lora_a: mx.array, lora_b: mx.array, alone: LoRALinear = alone, rows: slice = rows
        ) -> mx.array:
            alone.lora_a, alone.lora_b = lora_a, lora_b
            return (alone(x[rows]) * weights[rows]).sum()

        want_a, want_b = mx.grad(loss, argnums=(0, 1))(alone.lora_a, alone.lora_b)
        r = shape.rank
        np.testing.assert_allclose(grad_a[k, :, :r], want_a[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(grad_b[k, :r], want_b[0], rtol=1e-5, atol=1e-4)
        assert not mx.any(grad_a[k, :, r:])
        assert not mx.any(grad_b[k, r:])


def test_gathered_rows_take_the_adapter_named() -> None:
    """With an index every row gets its own adapter, in any order."""
    routing = Routing()
    layer, own = bank_layer(routing)
    x = drawn(4, 7, 32)
    order = [2, 0, 0, 1]
    routing.adapter = mx.array(order)
    found = layer(x)
    for row, k in enumerate(order):
        expected = single(Routing(), k, own)(x[row : row + 1])
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-5, atol=1e-5)


def test_update_is_computed_in_the_type_of_the_input() -> None:
    """A bfloat16 input gives a bfloat16 output and float32 gradients of the float32 adapter."""
    base = linear()
    base.set_dtype(mx.bfloat16)
    layer = LoRALinear(base, "layer", [AdapterShape(4, 1.0)], Routing())
    x = drawn(2, 7, 32).astype(mx.bfloat16)

    def loss(lora_b: mx.array) -> mx.array:
        layer.lora_b = lora_b
        return layer(x).sum()

    assert layer(x).dtype == mx.bfloat16
    assert mx.grad(loss)(mx.ones((1, 4, 24))).dtype == mx.float32


AFFINE = [(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"),
    [*AFFINE, (4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")],
)
def test_quantized_base_is_adapted_like_its_dequantized_weights(
    bits: int, group_size: int, mode: str
) -> None:
    """Over a quantized layer with a bias, output and gradients, that of the input too, are those
    of the floating-point layer that its weights stand for."""
    wide = linear(128, 24)
    packed = nn.QuantizedLinear.from_linear(wide, group_size, bits, mode)
    plain = linear(128, 24)
    plain.weight = mx.dequantize(packed.weight, packed.scales, packed.get("biases"), group_size,
                                 bits, mode).astype(mx.float32)  # fmt: skip
    adapter = [drawn(1, 128, 4, seed=5), drawn(1, 4, 24, seed=6)]
    x, weights = drawn(2, 3, 128), drawn(2, 3, 24, seed=7)

    def outcome(base: nn.Module) -> list[mx.array]:
        layer = LoRALinear(base, "layer", [AdapterShape(4, 1.5)], Routing())

        def loss(lora_a: mx.array, lora_b: mx.array, x: mx.array) -> mx.array:
            layer.lora_a, layer.lora_b = lora_a, lora_b
            return (layer(x) * weights).sum()

        gradients = mx.grad(loss, argnums=(0, 1, 2))(*adapter, x)
        layer.lora_a, layer.lora_b = adapter
        return [layer(x), *gradients]

    for found, expected in zip(outcome(packed), outcome(plain), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-3)


def dropping(path: str, share: float, keys: mx.array | None) -> LoRALinear:
    """Return a layer whose output is its (dropped) input: base zero, lora_a @ lora_b = 1."""
    base = nn.Linear(32, 32, bias=False)
    base.weight = mx.zeros((32, 32))
    layer = LoRALinear(base, path, [AdapterShape(32, 1.0, share)], Routing(dropout_keys=keys))
    layer.lora_a, layer.lora_b = mx.eye(32)[None], mx.eye(32)[None]
    return layer


def token_keys(rows: int, width: int) -> mx.array:
    rng = np.random.default_rng(3)
    first = mx.array(rng.integers(0, 2**32, (rows, 1, 2), dtype=np.uint32))
    place = mx.stack([mx.zeros((width,), mx.uint32), mx.arange(width, dtype=mx.uint32)], axis=1)
    return first + place


def test_dropout_keeps_the_mean() -> None:
    """A quarter of the inputs becomes zero and the others grow by 4/3."""
    found = np.array(dropping("layer", 0.25, token_keys(8, 64))(mx.ones((8, 64, 32))))
    assert set(np.unique(found.round(5))) == {np.float32(0), np.float32(1.33333)}
    assert abs((found == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / found.size)


def test_dropout_of_a_row_depends_on_nothing_beside_it() -> None:
    """Other rows in the batch and more padding leave a row's mask as it is."""
    keys = token_keys(4, 9)
    whole = dropping("layer", 0.5, keys)(mx.ones((4, 9, 32)))
    alone = dropping("layer", 0.5, keys[2:3, :6])(mx.ones((1, 6, 32)))
    assert mx.array_equal(whole[2, :6], alone[0])


def test_dropout_differs_between_rows_positions_and_layers() -> None:
    """No two rows, tokens or layers share a mask."""
    keys = token_keys(2, 2)
    masks = [np.array(dropping(path, 0.5, keys)(mx.ones((2, 2, 32)))).reshape(4, 32)
             for path in ("first", "second")]  # fmt: skip
    assert len({mask.tobytes() for mask in np.concatenate(masks)}) == 8


@pytest.mark.parametrize("tagged", [False, True])
def test_some_tokens_alone_are_computed_like_all(tagged: bool) -> None:
    """A head that sees some places of the batch gives each its own row's adapter and mask."""
    shapes = [AdapterShape(2, 0.5, 0.5), AdapterShape(5, 2.0, 0.2), AdapterShape(3, 1.25)]
    keys = token_keys(6, 7)
    routing = Routing(mx.array([2, 0, 1, 1, 0, 2]) if tagged else None, keys, adapters=3)
    layer = LoRALinear(linear(), "layer", shapes, routing)
    layer.lora_a, layer.lora_b = drawn(3, 32, 5, seed=3), drawn(3, 5, 24, seed=4)
    x, places = drawn(6, 7, 32), mx.array([0, 5, 6, 14, 13, 41, 30, 22])
    expected = layer(x).reshape(42, 24)[places]
    with routing.at(places, (6, 7)):
        found = layer(x.reshape(42, 32)[places][None])
    np.testing.assert_allclose(np.array(found[0]), np.array(expected), rtol=1e-5, atol=1e-5)
    assert routing.dropout_keys is keys


def test_dropout_of_tagged_rows_is_their_adapter_s() -> None:
    """Of rows in any order each is dropped by the share of its own adapter."""
    shares, order = [0.0, 0.5, 0.9], [2, 0, 1, 0]
    routing = Routing(mx.array(order), token_keys(4, 64), adapters=3)
    base = nn.Linear(32, 32, bias=False)
    base.weight = mx.zeros((32, 32))
    layer = LoRALinear(base, "layer", [AdapterShape(32, 1.0, share) for share in shares], routing)
    layer.lora_a = layer.lora_b = mx.broadcast_to(mx.eye(32), (3, 32, 32))
    zero = (np.array(layer(mx.ones((4, 64, 32)))) == 0).mean(axis=(1, 2))
    np.testing.assert_allclose(zero, [shares[k] for k in order], atol=0.05)


def test_dropout_of_zero_is_nothing() -> None:
    """At 0 the keys are not even looked at: the same bits as without keys."""
    x = drawn(4, 9, 32)
    assert mx.array_equal(dropping("a", 0.0, token_keys(4, 9))(x), dropping("a", 0.0, None)(x))
