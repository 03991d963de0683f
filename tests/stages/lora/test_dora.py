"""The DoRA layer against PEFT's own, and against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from mlx import nn

from stages.errors import SettingError
from stages.lora.bank import attach, initial
from stages.lora.dora import DoRALinear
from stages.lora.layers import AdapterShape, LoRALinear, Routing
from stages.lora.targets import find_targets

IN, OUT, RANK, SCALE = 64, 24, 4, 1.5
TOKENS = mx.array([[3, 9, 27, 17, 51], [2, 4, 8, 16, 32]])


def drawn(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape), mx.float32)


def linear(bias: bool = True) -> nn.Linear:
    layer = nn.Linear(IN, OUT, bias=bias)
    layer.weight = drawn(OUT, IN, seed=1)
    if bias:
        layer.bias = drawn(OUT, seed=2)
    return layer


def tuned(base: nn.Module, dropout: float = 0.0, keys: mx.array | None = None) -> DoRALinear:
    """Return a layer whose adapter is far from its start."""
    shape = AdapterShape(RANK, SCALE, dropout, dora=True)
    layer = DoRALinear(base, "layer", [shape], Routing(dropout_keys=keys))
    layer.put({"lora_a": drawn(1, IN, RANK, seed=3), "lora_b": drawn(1, RANK, OUT, seed=4),
               "m": layer.m * (1 + 0.3 * drawn(1, OUT, seed=5))})  # fmt: skip
    return layer


def peft_twin(layer: DoRALinear, dropout: torch.nn.Module | None = None) -> torch.nn.Module:
    """Return PEFT's DoRA layer with the same weights, in float64."""
    base = torch.nn.Sequential(torch.nn.Linear(IN, OUT)).double()
    with torch.no_grad():
        base[0].weight.copy_(torch.tensor(np.array(layer.linear.weight)))
        base[0].bias.copy_(torch.tensor(np.array(layer.linear.bias)))
    config = peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, use_dora=True, target_modules=["0"])
    twin = peft.get_peft_model(base, config).double().base_model.model[0]
    with torch.no_grad():
        twin.lora_A["default"].weight.copy_(torch.tensor(np.array(layer.lora_a[0].T)))
        twin.lora_B["default"].weight.copy_(torch.tensor(np.array(layer.lora_b[0].T)))
        twin.lora_magnitude_vector["default"].weight.copy_(torch.tensor(np.array(layer.m[0])))
    if dropout:
        twin.lora_dropout["default"] = dropout
    return twin


class Fixed(torch.nn.Module):
    """A dropout whose outcome is known."""

    def __init__(self, outcome: np.ndarray) -> None:
        super().__init__()
        self.outcome = torch.tensor(outcome)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.outcome


def keys(rows: int, width: int) -> mx.array:
    draw = np.random.default_rng(3).integers(0, 2**32, (rows, width, 2), dtype=np.uint32)
    return mx.array(draw)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_are_those_of_peft(dropout: float) -> None:
    """On a layer with bias, with dropout or without, output and the gradients of x, lora_a, lora_b
    and m equal PEFT's, which takes none through the norm."""
    given = keys(2, 7) if dropout else None
    layer, x, weights = tuned(linear(), dropout, given), drawn(2, 7, IN), drawn(2, 7, OUT, seed=9)
    outcome = np.array(x, np.float64)
    if dropout:
        # LoRA on the same path, over zeros and with lora_a @ lora_b = 1, shows what is dropped.
        zero = nn.Linear(IN, IN, bias=False)
        zero.weight = mx.zeros((IN, IN))
        bare = LoRALinear(zero, "layer", [AdapterShape(IN, 1.0, dropout)], layer.routing)
        bare.put({"lora_a": mx.eye(IN)[None], "lora_b": mx.eye(IN)[None]})
        outcome = np.array(bare(x), np.float64)
        assert 0.3 < (outcome == 0).mean() < 0.5
    twin = peft_twin(layer, Fixed(outcome) if dropout else None)
    twin.train()

    def loss(adapter: dict[str, mx.array]) -> mx.array:
        layer.put(adapter)
        return (layer(x) * weights).sum()

    adapter = {name: layer[name] for name in layer.trained}
    expected = twin(torch.tensor(np.array(x, np.float64)))
    np.testing.assert_allclose(np.array(layer(x)), expected.detach(), rtol=1e-5, atol=1e-4)
    (expected * torch.tensor(np.array(weights))).sum().backward()
    gradients = mx.grad(loss)(adapter)
    layer.put(adapter)
    wanted = {
        "lora_a": twin.lora_A["default"].weight.grad.T,
        "lora_b": twin.lora_B["default"].weight.grad.T,
        "m": twin.lora_magnitude_vector["default"].weight.grad,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(np.array(gradients[name][0]), value, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_fresh_adapter_leaves_the_logits_as_they_are(
    tiny_llama: Callable[..., Any], bits: int | None
) -> None:
    """A new DoRA adapter gives the base's logits bit by bit, on packed weights too."""
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    if bits:
        nn.quantize(model, 32, bits)
    expected = model(TOKENS)
    bank = attach(model, find_targets(model, ["*"], None), [AdapterShape(4, 2.0, dora=True)])
    bank.update(bank.join([initial(bank.layers, 4, seed=0)]))
    assert mx.array_equal(model(TOKENS), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_weights_are_rescaled_like_plain_ones(bits: int) -> None:
    """Over packed weights the output is m (W + D) / |W + D| x + b with W unpacked, in float64."""
    packed = nn.QuantizedLinear.from_linear(linear(), group_size=32, bits=bits)
    layer, x = tuned(packed), drawn(2, 3, IN)
    plain = mx.dequantize(packed.weight, packed.scales, packed.biases, group_size=32, bits=bits)
    a, b, m = (np.array(layer[name][0], np.float64) for name in ("lora_a", "lora_b", "m"))
    whole = np.array(plain, np.float64) + SCALE * (a @ b).T
    whole *= (m / np.linalg.norm(whole, axis=1))[:, None]
    expected = np.array(x, np.float64) @ whole.T + np.array(packed.bias)
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=1e-4, atol=1e-3)


def test_half_precision_keeps_small_changes_of_a_row() -> None:
    """Rows 2 % longer, a factor that bfloat16 rounds to 1.0234, give outputs 2 % larger."""
    base = linear(bias=False)
    base.set_dtype(mx.bfloat16)
    layer = DoRALinear(base, "layer", [AdapterShape(RANK, SCALE, dora=True)], Routing())
    x = drawn(4096, IN).astype(mx.bfloat16)
    before = np.array(layer(x).astype(mx.float32), np.float64)
    layer.m = layer.m * 1.02
    after = layer(x)
    assert after.dtype == mx.bfloat16
    grown = (np.array(after.astype(mx.float32), np.float64) * before).sum() / (before**2).sum()
    assert grown == pytest.approx(1.02, abs=1e-3)


def test_a_row_of_zeros_stays_one() -> None:
    """A row without a norm gives zero, not a number divided by zero, and so do its gradients."""
    base = linear(bias=False)
    base.weight[3] = 0
    layer = DoRALinear(base, "layer", [AdapterShape(RANK, SCALE, dora=True)], Routing())
    layer.lora_a = drawn(1, IN, RANK, seed=3)
    x = drawn(2, 7, IN)
    assert mx.array_equal(layer(x), base(x))

    def loss(m: mx.array) -> mx.array:
        layer.m = m
        return layer(x).square().sum()

    gradient = mx.grad(loss)(layer.m)
    assert mx.all(mx.isfinite(gradient))
    assert gradient[0, 3] == 0


def test_settled_layer_follows_new_weights() -> None:
    """What was worked out for one adapter is not used for the next."""
    layer, x = tuned(linear()), drawn(2, 3, IN)
    expected = layer(x)
    layer.settle()
    assert mx.array_equal(layer(x), expected)
    layer.put({"lora_a": layer.lora_a, "lora_b": 2 * layer.lora_b, "m": 3 * layer.m})
    changed = layer(x)
    layer.settle()
    assert mx.array_equal(layer(x), changed)
    assert not np.allclose(changed, expected, atol=0.1)


def test_several_adapters_on_one_base_are_refused(tiny_llama: Callable[..., Any]) -> None:
    """DoRA beside another adapter is refused by name, and the model keeps its layers."""
    model = tiny_llama()
    targets = find_targets(model, ["*"], None)
    with pytest.raises(SettingError, match=r"lora\.type: found 'dora' for one of 2 adapters"):
        attach(model, targets, [AdapterShape(4, 1.0, dora=True), AdapterShape(4, 1.0)])
    assert type(model.layers[0].self_attn.q_proj) is nn.Linear
